//! What a statement in the binlog means for captured tables.
//!
//! Rows come as row events; a QUERY event is a transaction's bracket, a definition, or a change
//! logged as a statement. Only as much is parsed as is needed to know which tables a definition
//! names. Whatever is not understood counts as touching every captured table whose name appears
//! in it: stopping once too often beats missing a change.

/// What a statement does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Statement {
    Begin,
    Commit,
    Rollback,
    Savepoint,
    RollbackToSavepoint,
    XaStart,
    /// XA END, and the second phases, which carry no rows.
    Xa,
    /// Empties a table.
    Truncate(Name),
    /// Makes a table.
    Create {
        table: Name,
        /// OR REPLACE: one that is there is dropped.
        replaces: bool,
        /// IF NOT EXISTS: one that is there stays.
        if_absent: bool,
        /// Its rows are part of the same transaction.
        rows_follow: bool,
    },
    /// Changes what tables are.
    Alter(Vec<Name>),
    /// Removes a database.
    DropDatabase(String),
    /// A change of rows that was logged as a statement.
    Rows,
    /// Nothing that tables of rows feel: users, views, routines, maintenance.
    Other,
    /// Not understood: these words may be names.
    Unknown(Vec<String>),
}

/// A table's name as the statement spells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    /// The database, if it is named.
    pub(crate) schema: Option<String>,
    pub(crate) name: String,
}

/// As much of a statement as is shown: more than anybody writes by hand.
const SHOWN_BYTES: usize = 4 << 10;

/// Reads a statement.
pub(crate) fn parse(sql: &str) -> Statement {
    let words = words(sql);
    let mut parser = Parser { words: &words, at: 0 };
    parser.statement().unwrap_or_else(|| Statement::Unknown(names(&words)))
}

/// A statement as an operator is to see it: all of what it changes, on one line, without the texts
/// in it, which may be values or secrets, and without comments.
pub(crate) fn shown(sql: &str) -> String {
    let mut out = String::new();
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let after = &rest[first.len_utf8()..];
        let comment = past_comment(rest);
        rest = match first {
            '\'' | '"' => {
                out.push_str("'…'");
                quoted(after, first).1
            }
            '`' => {
                let (name, rest) = quoted(after, first);
                out.push_str(&crate::connect::quote_name(&name));
                rest
            }
            c if c.is_whitespace() || comment.is_some() => {
                if !out.ends_with(' ') {
                    out.push(' ');
                }
                comment.unwrap_or(after)
            }
            c => {
                out.push(c);
                after
            }
        };
        if out.len() > SHOWN_BYTES {
            out.push('…');
            break;
        }
    }
    out.trim().to_owned()
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    /// A keyword or a bare name.
    Bare(String),
    /// A quoted name. Double quotes may also be a string: then it is a name too many.
    Quoted(String),
    /// A string.
    Text,
    Symbol(char),
}

fn names(words: &[Word]) -> Vec<String> {
    let name = |word: &Word| match word {
        Word::Bare(name) | Word::Quoted(name) => Some(name.clone()),
        Word::Text | Word::Symbol(_) => None,
    };
    words.iter().filter_map(name).collect()
}

/// Words of the statement without its comments; the content of `/*! … */` counts.
fn words(sql: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let after = &rest[first.len_utf8()..];
        if let Some(past) = past_comment(rest) {
            rest = past;
            continue;
        }
        rest = match first {
            '/' if after.starts_with("*!") || after.starts_with("*M!") => after
                .trim_start_matches(['*', 'M', '!'])
                .trim_start_matches(|c: char| c.is_ascii_digit()),
            '*' if after.starts_with('/') => &after[1..],
            '`' | '"' | '\'' => {
                let (text, rest) = quoted(after, first);
                words.push(if first == '\'' { Word::Text } else { Word::Quoted(text) });
                rest
            }
            c if c.is_whitespace() => after,
            c if is_name(c) => {
                let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
                words.push(Word::Bare(rest[..end].to_owned()));
                &rest[end..]
            }
            c => {
                words.push(Word::Symbol(c));
                after
            }
        };
    }
    words
}

/// What follows the comment that `sql` begins with; none if it begins with none, or with `/*! … */`,
/// whose content counts.
fn past_comment(sql: &str) -> Option<&str> {
    if let Some(text) = sql.strip_prefix("/*") {
        let counts = text.starts_with('!') || text.starts_with("M!");
        return (!counts).then(|| text.split_once("*/").map_or("", |(_, rest)| rest));
    }
    let ends = |c: char| c.is_whitespace() || c.is_control();
    let dashes = || sql.strip_prefix("--").filter(|text| text.is_empty() || text.starts_with(ends));
    let line = sql.strip_prefix('#').or_else(dashes)?;
    Some(line.split_once('\n').map_or("", |(_, rest)| rest))
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '$') || u32::from(c) >= 0x80
}

/// What stands up to the closing quote, and what follows it.
fn quoted(text: &str, quote: char) -> (String, &str) {
    let mut out = String::new();
    let mut characters = text.char_indices().peekable();
    while let Some((at, c)) = characters.next() {
        if c == quote {
            if characters.next_if(|(_, next)| *next == quote).is_none() {
                return (out, &text[at + c.len_utf8()..]);
            }
        } else if c == '\\' && quote != '`' {
            characters.next();
            continue;
        }
        out.push(c);
    }
    (out, "")
}

struct Parser<'w> {
    words: &'w [Word],
    at: usize,
}

impl Parser<'_> {
    fn statement(&mut self) -> Option<Statement> {
        if self.words.is_empty() {
            return Some(Statement::Other);
        }
        let keyword = self.bare()?;
        Some(match keyword.as_str() {
            "BEGIN" => Statement::Begin,
            "START" if self.take("TRANSACTION") => Statement::Begin,
            "COMMIT" => Statement::Commit,
            "ROLLBACK" if self.take("TO") => Statement::RollbackToSavepoint,
            "ROLLBACK" => Statement::Rollback,
            "SAVEPOINT" => Statement::Savepoint,
            "XA" if self.take("START") || self.take("BEGIN") => Statement::XaStart,
            "XA" => Statement::Xa,
            "TRUNCATE" => {
                self.take("TABLE");
                Statement::Truncate(self.name()?)
            }
            "CREATE" => return self.create(),
            "ALTER" => return self.alter(),
            "DROP" => return self.drop(),
            "RENAME" if self.take("TABLE") || self.take("TABLES") => return self.rename(),
            "INSERT" | "UPDATE" | "DELETE" | "REPLACE" | "LOAD" | "CALL" | "WITH" => {
                Statement::Rows
            }
            "RENAME" | "GRANT" | "REVOKE" | "SET" | "FLUSH" | "ANALYZE" | "OPTIMIZE" | "REPAIR"
            | "CHECK" | "CHECKSUM" | "INSTALL" | "UNINSTALL" | "IMPORT" | "RELEASE" => {
                Statement::Other
            }
            _ => return None,
        })
    }

    fn create(&mut self) -> Option<Statement> {
        let replaces = self.take("OR") && self.take("REPLACE");
        if self.take("TEMPORARY") {
            return Some(Statement::Other);
        }
        for kind in ["UNIQUE", "FULLTEXT", "SPATIAL"] {
            self.take(kind);
        }
        if self.take("INDEX") {
            return self.index();
        }
        if !self.take("TABLE") {
            return self.other();
        }
        let if_absent = self.take("IF") && self.take("NOT") && self.take("EXISTS");
        let table = self.name()?;
        // MySQL ends the definition of CREATE TABLE … SELECT so.
        let last = |word: &Word, text: &str| matches!(word, Word::Bare(bare) if bare.eq_ignore_ascii_case(text));
        let rows_follow = matches!(self.words, [.., start, transaction]
            if last(start, "START") && last(transaction, "TRANSACTION"));
        Some(Statement::Create { table, replaces, if_absent, rows_follow })
    }

    fn alter(&mut self) -> Option<Statement> {
        self.take("ONLINE");
        self.take("IGNORE");
        if !self.take("TABLE") {
            return self.other();
        }
        self.if_exists();
        let mut tables = vec![self.name()?];
        while self.at < self.words.len() {
            if self.take("RENAME") && !self.peek_is(&["COLUMN", "INDEX", "KEY", "CONSTRAINT"]) {
                let _optional = self.take("TO") || self.take("AS");
                tables.push(self.name()?);
            } else if self.take("TABLE") {
                // EXCHANGE PARTITION … WITH TABLE, CONVERT PARTITION … TO TABLE, CONVERT TABLE …
                tables.push(self.name()?);
            } else {
                self.at += 1;
            }
        }
        Some(Statement::Alter(tables))
    }

    fn drop(&mut self) -> Option<Statement> {
        if self.take("TEMPORARY") {
            return Some(Statement::Other);
        }
        if self.take("INDEX") {
            return self.index();
        }
        if self.take("DATABASE") || self.take("SCHEMA") {
            self.if_exists();
            return Some(Statement::DropDatabase(self.identifier()?));
        }
        if !self.take("TABLE") && !self.take("TABLES") {
            return self.other();
        }
        self.if_exists();
        let mut tables = vec![self.name()?];
        while self.symbol(',') {
            tables.push(self.name()?);
        }
        Some(Statement::Alter(tables))
    }

    fn rename(&mut self) -> Option<Statement> {
        self.if_exists();
        let mut tables = Vec::new();
        loop {
            tables.push(self.name()?);
            // MariaDB: WAIT n, NOWAIT.
            while self.at < self.words.len() && !self.take("TO") {
                self.at += 1;
            }
            tables.push(self.name()?);
            if !self.symbol(',') {
                return Some(Statement::Alter(tables));
            }
        }
    }

    /// CREATE or DROP INDEX name … ON table.
    fn index(&mut self) -> Option<Statement> {
        while self.at < self.words.len() {
            if self.take("ON") {
                return Some(Statement::Alter(vec![self.name()?]));
            }
            self.at += 1;
        }
        None
    }

    /// CREATE, ALTER or DROP of something that is no table.
    fn other(&mut self) -> Option<Statement> {
        const KINDS: &[&str] = &[
            "DATABASE",
            "SCHEMA",
            "VIEW",
            "TRIGGER",
            "PROCEDURE",
            "FUNCTION",
            "EVENT",
            "USER",
            "ROLE",
            "SERVER",
            "TABLESPACE",
            "UNDO",
            "LOGFILE",
            "SEQUENCE",
            "PACKAGE",
            "RESOURCE",
            "INSTANCE",
            "LIBRARY",
            "SPATIAL",
            "PREPARE",
            "DEFINER",
            "SQL",
            "ALGORITHM",
            "AGGREGATE",
            "JSON",
        ];
        self.peek_is(KINDS).then_some(Statement::Other)
    }

    fn if_exists(&mut self) {
        if self.take("IF") {
            self.take("EXISTS");
        }
    }

    fn bare(&mut self) -> Option<String> {
        let Some(Word::Bare(word)) = self.words.get(self.at) else { return None };
        self.at += 1;
        Some(word.to_ascii_uppercase())
    }

    fn peek_is(&self, any: &[&str]) -> bool {
        matches!(self.words.get(self.at), Some(Word::Bare(word))
            if any.iter().any(|one| word.eq_ignore_ascii_case(one)))
    }

    fn take(&mut self, keyword: &str) -> bool {
        let found = self.peek_is(&[keyword]);
        self.at += usize::from(found);
        found
    }

    fn symbol(&mut self, symbol: char) -> bool {
        let found = self.words.get(self.at) == Some(&Word::Symbol(symbol));
        self.at += usize::from(found);
        found
    }

    fn identifier(&mut self) -> Option<String> {
        let name = match self.words.get(self.at)? {
            Word::Bare(name) | Word::Quoted(name) => name.clone(),
            Word::Text | Word::Symbol(_) => return None,
        };
        self.at += 1;
        Some(name)
    }

    fn name(&mut self) -> Option<Name> {
        let first = self.identifier()?;
        if self.symbol('.') {
            return Some(Name { schema: Some(first), name: self.identifier()? });
        }
        Some(Name { schema: None, name: first })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        match text.split_once('.') {
            Some((schema, name)) => Name { schema: Some(schema.into()), name: name.into() },
            None => Name { schema: None, name: text.into() },
        }
    }

    #[test]
    fn definitions_name_their_tables() {
        let alter =
            |names: &[&str]| Statement::Alter(names.iter().map(|text| name(text)).collect());
        let create = |replaces, if_absent, rows_follow| Statement::Create {
            table: name("t"),
            replaces,
            if_absent,
            rows_follow,
        };
        for (sql, expected) in [
            ("BEGIN", Statement::Begin),
            ("COMMIT", Statement::Commit),
            ("ROLLBACK TO `a`", Statement::RollbackToSavepoint),
            ("/* gh-ost */ alter table `shop`.`t` add x int", alter(&["shop.t"])),
            ("ALTER TABLE t RENAME COLUMN a TO b, RENAME TO u", alter(&["t", "u"])),
            ("ALTER /*!50700 TABLE*/ t ADD c INT", alter(&["t"])),
            ("DROP TABLE IF EXISTS `a`,`b` /* generated by server */", alter(&["a", "b"])),
            ("rename table t to _t_old, _t_new to t", alter(&["t", "_t_old", "_t_new", "t"])),
            ("CREATE UNIQUE INDEX i ON t (a)", alter(&["t"])),
            ("TRUNCATE t", Statement::Truncate(name("t"))),
            ("TRUNCATE TABLE `sh``op`.t", Statement::Truncate(name("sh`op.t"))),
            ("CREATE TABLE IF NOT EXISTS `t` (a int)", create(false, true, false)),
            ("CREATE TABLE `t` (a int) START TRANSACTION", create(false, false, true)),
            ("CREATE OR REPLACE TABLE t (a int)", create(true, false, false)),
            (
                "ALTER TABLE archive EXCHANGE PARTITION p0 WITH TABLE `shop`.`t` WITHOUT VALIDATION",
                alter(&["archive", "shop.t"]),
            ),
            ("ALTER TABLE a CONVERT PARTITION p TO TABLE t", alter(&["a", "t"])),
            ("CREATE TEMPORARY TABLE t (a int)", Statement::Other),
            (
                "CREATE DEFINER=`r`@`l` TRIGGER x BEFORE INSERT ON t FOR EACH ROW SET @a=1",
                Statement::Other,
            ),
            ("DROP DATABASE `shop`", Statement::DropDatabase("shop".into())),
            ("insert into t values (1)", Statement::Rows),
            ("XA START X'61',X'',1", Statement::XaStart),
            ("# note\nGRANT ALL ON *.* TO a", Statement::Other),
        ] {
            assert_eq!(parse(sql), expected, "{sql}");
        }
        assert!(
            matches!(parse("FROB TABLE t"), Statement::Unknown(words) if words.contains(&"t".into()))
        );
    }

    #[test]
    fn comments_end_where_the_server_ends_them() {
        for (sql, past) in [
            ("/* a */ b", Some(" b")),
            ("/*/ a */ b", Some(" b")),
            ("/**/b", Some("b")),
            ("/* a", Some("")),
            ("/*! a */", None),
            ("/*M!100600 a */", None),
            ("-- a\nb", Some("b")),
            ("--\ta\nb", Some("b")),
            ("--\r\nb", Some("b")),
            ("--\nb", Some("b")),
            ("--", Some("")),
            ("--1", None),
            ("# a\nb", Some("b")),
            ("/ 2", None),
        ] {
            assert_eq!(past_comment(sql), past, "{sql:?}");
        }
        // Both readers pass over the same.
        for comment in ["/*/ DROP TABLE u */", "--\tx\n", "/* , u */", "#\n"] {
            let sql = format!("DROP TABLE{comment}t");
            assert_eq!(parse(&sql), Statement::Alter(vec![name("t")]), "{sql:?}");
            assert_eq!(shown(&sql), "DROP TABLE t", "{sql:?}");
        }
    }

    #[test]
    fn a_statement_is_shown_whole_without_its_texts() {
        for (sql, expected) in [
            (
                "ALTER TABLE `t`\n\tADD COLUMN `a``b` int  DEFAULT 5, DROP c",
                "ALTER TABLE `t` ADD COLUMN `a``b` int DEFAULT 5, DROP c",
            ),
            (
                "/* who */ ALTER TABLE t ADD e enum('it''s', \"b\") COMMENT 'x\\'y' -- z\n, DROP f # g",
                "ALTER TABLE t ADD e enum('…', '…') COMMENT '…' , DROP f",
            ),
            ("ALTER TABLE t /*!80000 DROP c */", "ALTER TABLE t /*!80000 DROP c */"),
            ("", ""),
        ] {
            assert_eq!(shown(sql), expected);
        }
        assert!(shown(&"é ".repeat(9000)).len() < SHOWN_BYTES + 8);
    }
}
