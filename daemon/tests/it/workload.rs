//! Random business on a small schema: every statement is valid, every transaction keeps the sum of
//! the balances.
//!
//! A model of the database decides what may be done next, so that the server refuses nothing: a
//! workload that runs into errors tests less than it seems to. Seeded; the seed is in every
//! failure's output.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// What the SQL is spelled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spelling {
    Postgres,
    Mysql,
}

/// The sum that every whole transaction keeps.
pub(crate) const TOTAL: i64 = 20_000;

/// Accounts at the start.
const ACCOUNTS: i64 = 200;

#[derive(Debug, Clone)]
struct Account {
    email: Option<u64>,
    slot: Option<u64>,
    balance: i64,
}

/// The generator and its model.
#[derive(Debug)]
pub(crate) struct Workload {
    spelling: Spelling,
    cascades: bool,
    random: SmallRng,
    next_id: i64,
    next_unique: u64,
    accounts: BTreeMap<i64, Account>,
    /// Order to its account and its number of lines.
    orders: BTreeMap<i64, (i64, u32)>,
    events: Vec<(u64, Option<u64>)>,
}

impl Workload {
    /// With `cascades`, foreign keys carry deletes and key changes to the rows that point there;
    /// without, the statements do.
    pub(crate) fn new(spelling: Spelling, cascades: bool, seed: u64) -> Self {
        Self {
            spelling,
            cascades,
            random: SmallRng::seed_from_u64(seed),
            next_id: 1,
            next_unique: 1,
            accounts: BTreeMap::new(),
            orders: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    /// The tables.
    pub(crate) fn schema(&self) -> String {
        let schema = match self.spelling {
            Spelling::Postgres => POSTGRES_SCHEMA,
            Spelling::Mysql => MYSQL_SCHEMA,
        };
        if self.cascades {
            return schema.to_owned();
        }
        schema.replace(" ON DELETE CASCADE", "").replace(" ON UPDATE CASCADE", "")
    }

    /// The rows that are there before the first snapshot.
    pub(crate) fn load(&mut self) -> String {
        let mut sql = String::from("BEGIN;\n");
        for _account in 0..ACCOUNTS {
            self.insert_account(&mut sql, TOTAL / ACCOUNTS);
        }
        for _order in 0..ACCOUNTS {
            self.insert_order(&mut sql);
        }
        for _event in 0..20 {
            self.insert_event(&mut sql);
        }
        sql.push_str("COMMIT;\n");
        sql
    }

    /// `count` transactions as one script.
    pub(crate) fn transactions(&mut self, count: usize) -> String {
        let mut sql = String::new();
        for _transaction in 0..count {
            self.transaction(&mut sql);
        }
        sql
    }

    fn transaction(&mut self, sql: &mut String) {
        sql.push_str("BEGIN;\n");
        let rolled_back = self.random.random_ratio(1, 20);
        let before =
            rolled_back.then(|| (self.accounts.clone(), self.orders.clone(), self.events.clone()));
        for _statement in 0..self.random.random_range(1..=6) {
            self.statement(sql);
        }
        if self.random.random_ratio(1, 15) {
            self.savepoint(sql);
        }
        match before {
            Some((accounts, orders, events)) => {
                (self.accounts, self.orders, self.events) = (accounts, orders, events);
                sql.push_str("ROLLBACK;\n");
            }
            None => sql.push_str("COMMIT;\n"),
        }
    }

    /// Something that is taken back within its transaction.
    fn savepoint(&mut self, sql: &mut String) {
        let kept = (self.accounts.clone(), self.orders.clone(), self.events.clone());
        sql.push_str("SAVEPOINT mark;\n");
        self.statement(sql);
        self.statement(sql);
        sql.push_str("ROLLBACK TO SAVEPOINT mark;\n");
        (self.accounts, self.orders, self.events) = kept;
    }

    fn statement(&mut self, sql: &mut String) {
        match self.random.random_range(0..100) {
            0..=29 => self.transfer(sql),
            30..=39 => self.insert_account(sql, 0),
            40..=47 => self.update_email(sql),
            48..=54 => self.swap_slots(sql),
            55..=59 => self.move_key(sql),
            60..=64 => self.delete_account(sql),
            65..=76 => self.insert_order(sql),
            77..=82 => self.update_order(sql),
            83..=86 => self.delete_order(sql),
            87..=91 => self.write_note(sql),
            92..=95 => self.insert_event(sql),
            _ => self.change_event(sql),
        }
    }

    fn account(&mut self) -> i64 {
        let index = self.random.random_range(0..self.accounts.len());
        *self.accounts.keys().nth(index).expect("there are always accounts")
    }

    fn unique(&mut self) -> u64 {
        self.next_unique += 1;
        self.next_unique
    }

    fn id(&mut self) -> i64 {
        self.next_id += 1;
        self.next_id
    }

    fn transfer(&mut self, sql: &mut String) {
        let (from, to) = (self.account(), self.account());
        let amount = self.random.random_range(1..50);
        if let Some(account) = self.accounts.get_mut(&from) {
            account.balance -= amount;
        }
        if let Some(account) = self.accounts.get_mut(&to) {
            account.balance += amount;
        }
        line(
            sql,
            format_args!("UPDATE accounts SET balance = balance - {amount} WHERE id = {from}"),
        );
        line(sql, format_args!("UPDATE accounts SET balance = balance + {amount} WHERE id = {to}"));
    }

    fn insert_account(&mut self, sql: &mut String, balance: i64) {
        let id = self.id();
        let email = self.random.random_ratio(4, 5).then(|| self.unique());
        let slot = self.random.random_ratio(1, 2).then(|| self.unique());
        let note = if self.random.random_ratio(1, 10) { self.text() } else { "NULL".to_owned() };
        line(
            sql,
            format_args!(
                "INSERT INTO accounts (id, email, slot, balance, note) VALUES ({id}, {}, {}, {balance}, {note})",
                email_sql(email),
                slot_sql(slot)
            ),
        );
        self.accounts.insert(id, Account { email, slot, balance });
    }

    fn update_email(&mut self, sql: &mut String) {
        let id = self.account();
        let email = self.random.random_ratio(3, 4).then(|| self.unique());
        if let Some(account) = self.accounts.get_mut(&id) {
            account.email = email;
        }
        line(sql, format_args!("UPDATE accounts SET email = {} WHERE id = {id}", email_sql(email)));
    }

    /// Two rows exchange a unique value: the order of three updates is all that makes it legal.
    fn swap_slots(&mut self, sql: &mut String) {
        let (a, b) = (self.account(), self.account());
        if a == b {
            return;
        }
        let slot = |accounts: &BTreeMap<i64, Account>, id| {
            accounts.get(&id).and_then(|account: &Account| account.slot)
        };
        let (of_a, of_b) = (slot(&self.accounts, a), slot(&self.accounts, b));
        for (id, value) in [(a, None), (b, of_a), (a, of_b)] {
            line(
                sql,
                format_args!("UPDATE accounts SET slot = {} WHERE id = {id}", slot_sql(value)),
            );
            if let Some(account) = self.accounts.get_mut(&id) {
                account.slot = value;
            }
        }
    }

    /// A key changes; its orders follow by cascade.
    fn move_key(&mut self, sql: &mut String) {
        let (old, new) = (self.account(), self.id());
        if !self.cascades && self.orders.values().any(|(account, _)| *account == old) {
            return;
        }
        line(sql, format_args!("UPDATE accounts SET id = {new} WHERE id = {old}"));
        if let Some(account) = self.accounts.remove(&old) {
            self.accounts.insert(new, account);
        }
        for (account, _) in self.orders.values_mut().filter(|(account, _)| *account == old) {
            *account = new;
        }
    }

    /// An account goes; its balance moves first, its orders and their lines go by cascade.
    fn delete_account(&mut self, sql: &mut String) {
        if self.accounts.len() < 50 {
            return;
        }
        let (gone, heir) = (self.account(), self.account());
        if gone == heir {
            return;
        }
        let Some(account) = self.accounts.remove(&gone) else { return };
        if let Some(heir) = self.accounts.get_mut(&heir) {
            heir.balance += account.balance;
        }
        let orders: Vec<i64> = self
            .orders
            .iter()
            .filter(|(_, (account, _))| *account == gone)
            .map(|(id, _)| *id)
            .collect();
        for order in orders {
            self.orders.remove(&order);
            if !self.cascades {
                line(sql, format_args!("DELETE FROM order_lines WHERE order_id = {order}"));
                line(sql, format_args!("DELETE FROM orders WHERE id = {order}"));
            }
        }
        let balance = account.balance;
        line(
            sql,
            format_args!("UPDATE accounts SET balance = balance + ({balance}) WHERE id = {heir}"),
        );
        line(sql, format_args!("DELETE FROM accounts WHERE id = {gone}"));
    }

    fn insert_order(&mut self, sql: &mut String) {
        let (id, account) = (self.id(), self.account());
        let lines = self.random.random_range(0..4);
        line(
            sql,
            format_args!(
                "INSERT INTO orders (id, account_id, state, placed_at) VALUES ({id}, {account}, 'new', '2026-01-02 03:04:05.{:06}')",
                self.random.random_range(0..1_000_000)
            ),
        );
        for number in 0..lines {
            line(
                sql,
                format_args!(
                    "INSERT INTO order_lines (order_id, line, product, price) VALUES ({id}, {number}, 'product {}', {}.{:02})",
                    self.random.random_range(0..50),
                    self.random.random_range(0..1000),
                    self.random.random_range(0..100)
                ),
            );
        }
        self.orders.insert(id, (account, lines));
    }

    fn order(&mut self) -> Option<i64> {
        if self.orders.is_empty() {
            return None;
        }
        let index = self.random.random_range(0..self.orders.len());
        self.orders.keys().nth(index).copied()
    }

    fn update_order(&mut self, sql: &mut String) {
        let Some(id) = self.order() else { return };
        let state = ["paid", "sent", "returned"][self.random.random_range(0..3)];
        line(sql, format_args!("UPDATE orders SET state = '{state}' WHERE id = {id}"));
        line(sql, format_args!("UPDATE order_lines SET price = price + 1 WHERE order_id = {id}"));
    }

    fn delete_order(&mut self, sql: &mut String) {
        let Some(id) = self.order() else { return };
        self.orders.remove(&id);
        if !self.cascades {
            line(sql, format_args!("DELETE FROM order_lines WHERE order_id = {id}"));
        }
        line(sql, format_args!("DELETE FROM orders WHERE id = {id}"));
    }

    fn write_note(&mut self, sql: &mut String) {
        let (id, note) = (self.account(), self.text());
        line(sql, format_args!("UPDATE accounts SET note = {note} WHERE id = {id}"));
    }

    /// Text that is sometimes large enough to leave its row, and never easy on a parser.
    fn text(&mut self) -> String {
        let words = ["naïve", "tab\tand\nline", "100%", "\u{1F600}", "''", "a,b;c", "NULL", " "];
        let count = if self.random.random_ratio(1, 8) { 2_500 } else { 6 };
        let mut text = String::from("'");
        for _word in 0..count {
            text.push_str(words[self.random.random_range(0..words.len())]);
            let _infallible = write!(text, "{}", self.random.random_range(0..1000));
        }
        text.push('\'');
        text
    }

    /// A table without a key, where equal rows may repeat.
    fn insert_event(&mut self, sql: &mut String) {
        let kind = self.random.random_range(0..5);
        let payload = self.random.random_ratio(2, 3).then(|| self.random.random_range(0..10));
        self.events.push((kind, payload));
        line(
            sql,
            format_args!(
                "INSERT INTO events (kind, payload) VALUES ({kind}, {})",
                payload.map_or("NULL".to_owned(), |payload| format!("'{payload}'"))
            ),
        );
    }

    fn change_event(&mut self, sql: &mut String) {
        let kind = self.random.random_range(0..5);
        if self.random.random_ratio(1, 2) {
            line(
                sql,
                format_args!(
                    "UPDATE events SET payload = 'changed' WHERE kind = {kind} AND payload IS NULL"
                ),
            );
        } else {
            line(
                sql,
                format_args!(
                    "DELETE FROM events WHERE kind = {kind} AND payload = '{}'",
                    self.random.random_range(0..10)
                ),
            );
        }
    }
}

fn line(sql: &mut String, statement: std::fmt::Arguments<'_>) {
    let _infallible = writeln!(sql, "{statement};");
}

fn email_sql(email: Option<u64>) -> String {
    email.map_or("NULL".to_owned(), |email| format!("'user{email}@example.org'"))
}

fn slot_sql(slot: Option<u64>) -> String {
    slot.map_or("NULL".to_owned(), |slot| slot.to_string())
}

const POSTGRES_SCHEMA: &str = "
CREATE TABLE accounts (
    id bigint PRIMARY KEY,
    email varchar(100) UNIQUE,
    slot bigint UNIQUE,
    balance bigint NOT NULL,
    note text
);
CREATE TABLE orders (
    id bigint PRIMARY KEY,
    account_id bigint NOT NULL REFERENCES accounts ON DELETE CASCADE ON UPDATE CASCADE,
    state varchar(20) NOT NULL,
    placed_at timestamp(6) NOT NULL
);
CREATE TABLE order_lines (
    order_id bigint NOT NULL REFERENCES orders ON DELETE CASCADE,
    line int NOT NULL,
    product varchar(40) NOT NULL,
    price numeric(10, 2) NOT NULL,
    PRIMARY KEY (order_id, line)
);
CREATE TABLE events (kind int NOT NULL, payload varchar(40));
ALTER TABLE events REPLICA IDENTITY FULL;
";

const MYSQL_SCHEMA: &str = "
CREATE TABLE accounts (
    id bigint PRIMARY KEY,
    email varchar(100) UNIQUE,
    slot bigint UNIQUE,
    balance bigint NOT NULL,
    note longtext
) CHARACTER SET utf8mb4;
CREATE TABLE orders (
    id bigint PRIMARY KEY,
    account_id bigint NOT NULL,
    state varchar(20) NOT NULL,
    placed_at datetime(6) NOT NULL,
    FOREIGN KEY (account_id) REFERENCES accounts (id) ON DELETE CASCADE ON UPDATE CASCADE
) CHARACTER SET utf8mb4;
CREATE TABLE order_lines (
    order_id bigint NOT NULL,
    line int NOT NULL,
    product varchar(40) NOT NULL,
    price decimal(10, 2) NOT NULL,
    PRIMARY KEY (order_id, line),
    FOREIGN KEY (order_id) REFERENCES orders (id) ON DELETE CASCADE
) CHARACTER SET utf8mb4;
CREATE TABLE events (kind int NOT NULL, payload varchar(40)) CHARACTER SET utf8mb4;
";

/// The rows of every table in words that both kinds of server print alike.
pub(crate) const COMPARABLE: [&str; 4] = [
    "SELECT CONCAT_WS('|', id, COALESCE(email, 'NULL'), COALESCE(CAST(slot AS CHAR(20)), 'NULL'), balance, COALESCE(CAST(LENGTH(note) AS CHAR(20)), 'NULL'), COALESCE(SUBSTRING(REPLACE(REPLACE(note, CHR_9, ' '), CHR_10, ' '), 1, 60), 'NULL')) FROM accounts ORDER BY id",
    "SELECT CONCAT_WS('|', id, account_id, state, placed_at) FROM orders ORDER BY id",
    "SELECT CONCAT_WS('|', order_id, line, product, price) FROM order_lines ORDER BY order_id, line",
    "SELECT CONCAT_WS('|', kind, COALESCE(payload, 'NULL')) FROM events ORDER BY kind, payload",
];
