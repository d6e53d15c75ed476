-- What is in the warehouse.
CREATE TABLE stock.products (
    id int unsigned NOT NULL AUTO_INCREMENT PRIMARY KEY,
    name varchar(100) NOT NULL,
    quantity int NOT NULL,
    changed_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP(3) ON UPDATE CURRENT_TIMESTAMP(3)
) ENGINE = InnoDB;
INSERT INTO stock.products (name, quantity)
SELECT CONCAT('product ', seq), seq % 100 FROM seq_1_to_20000;
