//! The sample order system: its tables, its first rows, and what its customers do.
//!
//! The tables have what makes replication hard: foreign keys, a secondary unique key, amounts that
//! must add up. In every transaction the sum of all orders' totals stays the sum of their items:
//! a reader that ever sees the two differ has seen half a transaction ([`WHOLE`]).

use std::collections::VecDeque;
use std::fmt::Write as _;

use tailwater_scratch::Flavor;

const CUSTOMERS: u64 = 5_000;
const PRODUCTS: u64 = 1_000;
const ORDERS: u64 = 40_000;

/// Of one order system, as loaded: one to four items an order, two and a half on average.
pub(crate) const ROWS: u64 = CUSTOMERS + PRODUCTS + ORDERS + ORDERS * 5 / 2;

/// Reads what must always be true, as `0` or the amount that is missing.
pub(crate) const WHOLE: &str = "SELECT (SELECT COALESCE(SUM(total), 0) FROM orders) \
     - (SELECT COALESCE(SUM(quantity * price), 0) FROM order_items);";

/// Orders placed since the start that may still be shipped or cancelled.
const OPEN_ORDERS: usize = 2_000;

/// The statements that make the tables and their first rows.
pub(crate) fn load(flavor: Flavor) -> String {
    let dialect = Dialect(flavor);
    let (moment, city) = (dialect.moment("n"), dialect.city("n"));
    format!(
        "{tables}
INSERT INTO customers SELECT n, CONCAT('Customer ', n), CONCAT('customer', n, '@example.org'),
    {city}, 0, {moment} FROM {customers} s;
INSERT INTO products SELECT n, CONCAT('Product ', n), {price}, 1000 FROM {products} s;
INSERT INTO orders SELECT o, MIN(o % {CUSTOMERS} + 1), 'shipped', SUM(quantity * price), MIN(moment),
    CASE WHEN o % 10 = 0 THEN 'Please leave it with the neighbours.' END
    FROM ({items}) i GROUP BY o;
INSERT INTO order_items SELECT o, line, product, quantity, price FROM ({items}) i;
",
        tables = dialect.tables(),
        customers = dialect.series(CUSTOMERS),
        products = dialect.series(PRODUCTS),
        price = price("n"),
        items = dialect.items(),
    )
}

/// How a statement is spelled for one engine.
struct Dialect(Flavor);

impl Dialect {
    fn tables(&self) -> String {
        let moment = if self.0.is_postgres() { "timestamp(6)" } else { "datetime(6)" };
        format!(
            "CREATE TABLE customers (id bigint PRIMARY KEY, name varchar(80) NOT NULL,
    email varchar(120) NOT NULL UNIQUE, city varchar(40) NOT NULL, points int NOT NULL,
    joined_at {moment} NOT NULL);
CREATE TABLE products (id bigint PRIMARY KEY, name varchar(80) NOT NULL,
    price numeric(10,2) NOT NULL, stock bigint NOT NULL);
CREATE TABLE orders (id bigint PRIMARY KEY, customer_id bigint NOT NULL,
    status varchar(12) NOT NULL, total numeric(12,2) NOT NULL, placed_at {moment} NOT NULL, note text,
    CONSTRAINT orders_customer FOREIGN KEY (customer_id) REFERENCES customers (id));
CREATE TABLE order_items (order_id bigint NOT NULL, line int NOT NULL, product_id bigint NOT NULL,
    quantity int NOT NULL, price numeric(10,2) NOT NULL, PRIMARY KEY (order_id, line),
    CONSTRAINT order_items_order FOREIGN KEY (order_id) REFERENCES orders (id),
    CONSTRAINT order_items_product FOREIGN KEY (product_id) REFERENCES products (id));"
        )
    }

    /// A table of the numbers from 1 through `count` in a column `n`.
    fn series(&self, count: u64) -> String {
        if self.0.is_postgres() {
            format!("(SELECT generate_series(1, {count}) AS n)")
        } else {
            format!("(SELECT seq AS n FROM seq_1_to_{count})")
        }
    }

    /// Every item of every order.
    fn items(&self) -> String {
        let product = format!("((n * 7 + line * 13) % {PRODUCTS} + 1)");
        format!(
            "SELECT n AS o, line, {product} AS product, (n + line) % 3 + 1 AS quantity,
        {price} AS price, {moment} AS moment
    FROM {orders} s, (SELECT 1 AS line UNION ALL SELECT 2 UNION ALL SELECT 3 UNION ALL SELECT 4) l
    WHERE line <= n % 4 + 1",
            price = price(&product),
            moment = self.moment("n"),
            orders = self.series(ORDERS),
        )
    }

    fn moment(&self, minutes: &str) -> String {
        if self.0.is_postgres() {
            format!("timestamp '2026-01-01' + {minutes} * interval '1 minute'")
        } else {
            format!("TIMESTAMP '2026-01-01 00:00:00' + INTERVAL {minutes} MINUTE")
        }
    }

    fn city(&self, number: &str) -> String {
        let names = "'Oslo', 'Turin', 'Kraków', 'Porto', 'Ghent', 'Malmö', 'Split', 'Tartu'";
        if self.0.is_postgres() {
            format!("(ARRAY[{names}])[{number} % 8 + 1]")
        } else {
            format!("ELT({number} % 8 + 1, {names})")
        }
    }
}

/// A product's price from its number, as the statements and [`Customers`] compute it.
fn price(product: &str) -> String {
    format!("CAST(1.99 + {product} % 200 * 0.75 AS decimal(10,2))")
}

fn price_cents(product: u64) -> u64 {
    199 + product % 200 * 75
}

/// What the customers do, as one stream of transactions. The same seed does the same.
#[derive(Debug)]
pub(crate) struct Customers {
    random: Random,
    orders: u64,
    customers: u64,
    open: VecDeque<(u64, u64)>,
}

impl Customers {
    /// Customers of a freshly loaded system.
    pub(crate) fn new(seed: u64) -> Customers {
        Customers {
            random: Random(seed),
            orders: ORDERS,
            customers: CUSTOMERS,
            open: VecDeque::new(),
        }
    }

    /// Appends one transaction and returns how many rows it changes.
    pub(crate) fn act(&mut self, sql: &mut String) -> u64 {
        sql.push_str("BEGIN;\n");
        let rows = match self.random.below(100) {
            0..70 => self.order(sql),
            70..86 => self.ship(sql),
            86..94 => self.cancel(sql),
            94..98 => self.join(sql),
            _ => self.move_house(sql),
        };
        sql.push_str("COMMIT;\n");
        rows
    }

    /// Appends a transaction that changes many rows at once: everyone's points.
    pub(crate) fn celebrate(&mut self, sql: &mut String) -> u64 {
        let share = self.random.below(3);
        let of_share = (1..=CUSTOMERS).filter(|id| id % 3 == share).count();
        add(
            sql,
            format_args!(
                "UPDATE customers SET points = points + 1 WHERE id % 3 = {share} AND id <= {CUSTOMERS};"
            ),
        );
        u64::try_from(of_share).unwrap_or(CUSTOMERS)
    }

    fn order(&mut self, sql: &mut String) -> u64 {
        self.orders += 1;
        let (id, customer) = (self.orders, 1 + self.random.below(self.customers));
        let count = 1 + self.random.below(4);
        let items: Vec<(u64, u64)> = (0..count)
            .map(|_| (1 + self.random.below(PRODUCTS), 1 + self.random.below(3)))
            .collect();
        let total: u64 = items.iter().map(|(product, some)| price_cents(*product) * some).sum();
        add(
            sql,
            format_args!(
                "INSERT INTO orders VALUES ({id}, {customer}, 'placed', {}, CURRENT_TIMESTAMP, NULL);",
                money(total)
            ),
        );
        for (line, (product, quantity)) in (1..).zip(&items) {
            add(
                sql,
                format_args!(
                    "INSERT INTO order_items VALUES ({id}, {line}, {product}, {quantity}, {});\n\
                     UPDATE products SET stock = stock - {quantity} WHERE id = {product};",
                    money(price_cents(*product))
                ),
            );
        }
        self.open.push_back((id, count));
        if self.open.len() > OPEN_ORDERS {
            self.open.pop_front();
        }
        1 + 2 * count
    }

    fn ship(&mut self, sql: &mut String) -> u64 {
        let Some((id, _)) = self.any_open() else { return self.join(sql) };
        add(
            sql,
            format_args!(
                "UPDATE orders SET status = 'shipped', note = 'Parcel {id:08}, sent with care.' \
                 WHERE id = {id} AND status = 'placed';"
            ),
        );
        1
    }

    fn cancel(&mut self, sql: &mut String) -> u64 {
        let Some((id, items)) = self.any_open() else { return self.join(sql) };
        add(
            sql,
            format_args!(
                "DELETE FROM order_items WHERE order_id = {id};\nDELETE FROM orders WHERE id = {id};"
            ),
        );
        items + 1
    }

    fn join(&mut self, sql: &mut String) -> u64 {
        self.customers += 1;
        let id = self.customers;
        add(
            sql,
            format_args!(
                "INSERT INTO customers VALUES ({id}, 'Customer {id}', 'customer{id}@example.org', \
                 'Łódź', 0, CURRENT_TIMESTAMP);"
            ),
        );
        1
    }

    fn move_house(&mut self, sql: &mut String) -> u64 {
        let id = 1 + self.random.below(self.customers);
        let street = self.random.below(1_000_000);
        add(
            sql,
            format_args!(
                "UPDATE customers SET city = 'Reykjavík', email = 'c{id}.{street}@example.net' \
                 WHERE id = {id};"
            ),
        );
        1
    }

    /// Takes an open order out of the list: it is shipped or cancelled once.
    fn any_open(&mut self) -> Option<(u64, u64)> {
        if self.open.is_empty() {
            return None;
        }
        let count = u64::try_from(self.open.len()).ok()?;
        let at = usize::try_from(self.random.below(count)).ok()?;
        self.open.swap_remove_back(at)
    }
}

fn add(sql: &mut String, statement: std::fmt::Arguments<'_>) {
    writeln!(sql, "{statement}").expect("a string takes every text");
}

fn money(cents: u64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

/// SplitMix64: a sample's randomness needs to be repeatable, nothing more.
#[derive(Debug)]
struct Random(u64);

impl Random {
    /// A number below `limit`, which is small beside 2^64.
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_does_the_same_and_opens_what_it_closes() {
        let run = |seed| {
            let mut customers = Customers::new(seed);
            let mut sql = String::new();
            let rows: u64 = (0..1_000).map(|_| customers.act(&mut sql)).sum();
            (rows, sql)
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
        let (rows, sql) = run(7);
        assert_eq!(sql.matches("BEGIN;").count(), 1_000);
        assert_eq!(sql.matches("COMMIT;").count(), 1_000);
        assert!(rows > 3_000, "{rows}");
    }

    #[test]
    fn money_is_exact() {
        assert_eq!(money(price_cents(1)), "2.74");
        assert_eq!(money(100_005), "1000.05");
    }
}
