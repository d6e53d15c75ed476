-- One round of business: an order, a payment, a cancellation.
BEGIN;
WITH placed AS (
    INSERT INTO orders (customer_id) VALUES (1 + floor(random() * 50000)::bigint) RETURNING id
)
INSERT INTO lines SELECT id, n, 'product ' || n, n, n * 1.5 FROM placed, generate_series(1, 3) n;
UPDATE customers SET balance = balance - 1 WHERE id = 1 + floor(random() * 50000)::bigint;
COMMIT;
UPDATE orders SET state = 'paid' WHERE id = (SELECT max(id) - 5 FROM orders);
DELETE FROM orders WHERE id = (SELECT min(id) FROM orders);
