//! TABLE_MAP: what the rows that follow are made of, and whether that is the table we know.
//!
//! With `binlog_row_metadata = FULL` the event names columns, signs, character sets, labels and the
//! primary key. Rows are decoded by the schema that capture has announced; an event that says
//! otherwise means that the table's definition changed, and stops the stream.

use std::collections::HashMap;

use tailwater_change::{Column, Generated, TableSchema};

use super::image::{Form, Shape};
use super::take::{Broken, Take, bit};
use crate::charset::Charset;
use crate::types::ColumnType;

use self::column_type as t;

/// Numbers of column types as events have them.
pub(crate) mod column_type {
    pub(crate) const TINY: u8 = 1;
    pub(crate) const SHORT: u8 = 2;
    pub(crate) const LONG: u8 = 3;
    pub(crate) const FLOAT: u8 = 4;
    pub(crate) const DOUBLE: u8 = 5;
    pub(crate) const NULL: u8 = 6;
    pub(crate) const OLD_TIMESTAMP: u8 = 7;
    pub(crate) const LONGLONG: u8 = 8;
    pub(crate) const INT24: u8 = 9;
    pub(crate) const DATE: u8 = 10;
    pub(crate) const OLD_TIME: u8 = 11;
    pub(crate) const OLD_DATETIME: u8 = 12;
    pub(crate) const YEAR: u8 = 13;
    pub(crate) const VARCHAR: u8 = 15;
    pub(crate) const BIT: u8 = 16;
    pub(crate) const TIMESTAMP: u8 = 17;
    pub(crate) const DATETIME: u8 = 18;
    pub(crate) const TIME: u8 = 19;
    pub(crate) const BLOB_COMPRESSED: u8 = 140;
    pub(crate) const VARCHAR_COMPRESSED: u8 = 141;
    pub(crate) const VECTOR: u8 = 242;
    pub(crate) const JSON: u8 = 245;
    pub(crate) const DECIMAL: u8 = 246;
    pub(crate) const ENUM: u8 = 247;
    pub(crate) const SET: u8 = 248;
    pub(crate) const BLOB: u8 = 252;
    pub(crate) const VAR_STRING: u8 = 253;
    pub(crate) const STRING: u8 = 254;
    pub(crate) const GEOMETRY: u8 = 255;
}

/// `binary`: the collation of bytes.
const BINARY_COLLATION: usize = 63;

/// The event, read.
#[derive(Debug)]
pub(crate) struct TableMap<'b> {
    pub(crate) schema: &'b [u8],
    pub(crate) table: &'b [u8],
    pub(crate) columns: Vec<MapColumn<'b>>,
    /// Indexes of the primary key's columns.
    key: Vec<usize>,
}

/// A column as the event has it.
#[derive(Debug, Default)]
pub(crate) struct MapColumn<'b> {
    /// The type that rows are written by: ENUM and SET are found behind STRING.
    kind: u8,
    /// Type-specific: a length, a precision and scale, digits of a second.
    meta: u16,
    name: Option<&'b [u8]>,
    unsigned: bool,
    collation: Option<usize>,
    labels: Option<Vec<&'b [u8]>>,
}

/// Character sets by the number of a collation, as the server lists them.
pub(crate) type Collations = HashMap<usize, String>;

impl<'b> TableMap<'b> {
    /// Reads what follows the table's number and flags.
    pub(crate) fn read(mut take: Take<'b>) -> Result<Self, Broken> {
        let schema = take.prefixed(1)?;
        take.u8()?;
        let table = take.prefixed(1)?;
        take.u8()?;
        let count = take.length()?;
        let types = take.bytes(count)?;
        let mut meta = Take(take.counted()?);
        let mut columns = Vec::with_capacity(types.len());
        for &kind in types {
            columns.push(MapColumn::of(kind, &mut meta)?);
        }
        take.bytes(count.div_ceil(8))?;
        let mut map = Self { schema, table, columns, key: Vec::new() };
        while !take.is_empty() {
            let field = take.u8()?;
            map.optional(field, Take(take.counted()?))?;
        }
        Ok(map)
    }

    /// Decoders of the columns if this is the table `schema`; else what differs.
    pub(crate) fn bind(
        &self,
        schema: &TableSchema,
        collations: &Collations,
    ) -> Result<Vec<Form>, String> {
        if self.columns.len() != schema.columns.len() {
            return Err(format!(
                "it has {} columns, not {}",
                self.columns.len(),
                schema.columns.len()
            ));
        }
        let mut forms = Vec::with_capacity(self.columns.len());
        for (found, known) in self.columns.iter().zip(&schema.columns) {
            let name = found.name.ok_or(
                "the binlog does not name its columns: it was written without \
                 binlog_row_metadata = FULL",
            )?;
            if name != known.name.as_bytes() {
                let name = String::from_utf8_lossy(name);
                return Err(format!("column {} is now called {name}", known.name));
            }
            forms.push(
                found
                    .form(known, collations)
                    .map_err(|why| format!("column {}: {why}", known.name))?,
            );
        }
        let mut key = schema.key().to_vec();
        let mut found = self.key.clone();
        key.sort_unstable();
        found.sort_unstable();
        if key != found {
            return Err("its primary key is another".into());
        }
        Ok(forms)
    }

    /// The widths of the columns, for rows that are only counted.
    pub(crate) fn shapes(&self) -> Vec<Form> {
        self.columns.iter().map(|column| Form::Skip(column.shape())).collect()
    }

    fn optional(&mut self, field: u8, mut take: Take<'b>) -> Result<(), Broken> {
        match field {
            1 => {
                let bits = take.0;
                let numeric = self.columns.iter_mut().filter(|column| column.is_numeric());
                for (at, column) in numeric.enumerate() {
                    // The highest bit of the first byte is the first.
                    column.unsigned = bit(bits, at / 8 * 8 + (7 - at % 8));
                }
            }
            2 => self.default_collation(take, MapColumn::is_character)?,
            3 => self.each_collation(take, MapColumn::is_character)?,
            4 => {
                for column in &mut self.columns {
                    column.name = Some(take.counted()?);
                }
            }
            6 => {
                for column in self.columns.iter_mut().filter(|column| column.kind == t::ENUM) {
                    let mut labels = Vec::new();
                    for _ in 0..take.length()? {
                        labels.push(take.counted()?);
                    }
                    column.labels = Some(labels);
                }
            }
            8 => {
                while !take.is_empty() {
                    self.key.push(take.length()?);
                }
            }
            9 => {
                while !take.is_empty() {
                    self.key.push(take.length()?);
                    take.length()?;
                }
            }
            10 => self.default_collation(take, MapColumn::is_enum_or_set)?,
            11 => self.each_collation(take, MapColumn::is_enum_or_set)?,
            // Labels of sets, kinds of geometries, visibility, dimensions: of columns that do not
            // flow, or of no consequence. Later servers may add more of that sort.
            _ => {}
        }
        Ok(())
    }

    fn default_collation(
        &mut self,
        mut take: Take<'b>,
        concerns: fn(&MapColumn<'b>) -> bool,
    ) -> Result<(), Broken> {
        let default = take.length()?;
        let mut exceptions = HashMap::new();
        while !take.is_empty() {
            exceptions.insert(take.length()?, take.length()?);
        }
        let columns = self.columns.iter_mut().filter(|column| concerns(column));
        for (at, column) in columns.enumerate() {
            column.collation = Some(exceptions.get(&at).copied().unwrap_or(default));
        }
        Ok(())
    }

    fn each_collation(
        &mut self,
        mut take: Take<'b>,
        concerns: fn(&MapColumn<'b>) -> bool,
    ) -> Result<(), Broken> {
        for column in self.columns.iter_mut().filter(|column| concerns(column)) {
            column.collation = Some(take.length()?);
        }
        Ok(())
    }
}

impl MapColumn<'_> {
    fn of(kind: u8, meta: &mut Take<'_>) -> Result<Self, Broken> {
        let column = |kind, meta| Self { kind, meta, ..Self::default() };
        Ok(match kind {
            t::FLOAT
            | t::DOUBLE
            | t::BLOB
            | t::JSON
            | t::GEOMETRY
            | t::VECTOR
            | t::TIMESTAMP
            | t::DATETIME
            | t::TIME
            | t::BLOB_COMPRESSED => column(kind, u16::from(meta.u8()?)),
            t::VARCHAR | t::VARCHAR_COMPRESSED | t::BIT | t::VAR_STRING => {
                column(kind, meta.u16()?)
            }
            t::DECIMAL | t::ENUM | t::SET => column(kind, u16::from_be_bytes(meta.array()?)),
            t::STRING => {
                let [real, length] = meta.array()?;
                if real & 0x30 == 0x30 {
                    column(real, u16::from(length))
                } else {
                    // Two more bits of the length, inverted, in the type's.
                    let high = u16::from((real & 0x30) ^ 0x30) << 4;
                    column(real | 0x30, u16::from(length) | high)
                }
            }
            _ => column(kind, 0),
        })
    }

    fn is_numeric(&self) -> bool {
        matches!(
            self.kind,
            t::TINY
                | t::SHORT
                | t::INT24
                | t::LONG
                | t::LONGLONG
                | t::DECIMAL
                | t::FLOAT
                | t::DOUBLE
                | t::YEAR
        )
    }

    fn is_character(&self) -> bool {
        matches!(
            self.kind,
            t::STRING
                | t::VAR_STRING
                | t::VARCHAR
                | t::BLOB
                | t::BLOB_COMPRESSED
                | t::VARCHAR_COMPRESSED
        )
    }

    fn is_enum_or_set(&self) -> bool {
        matches!(self.kind, t::ENUM | t::SET)
    }

    /// Bytes that a value takes in a row.
    fn shape(&self) -> Shape {
        let digits = u8::try_from(self.meta).unwrap_or(u8::MAX);
        let [high, low] = self.meta.to_be_bytes();
        let fixed =
            |bytes: Result<usize, Broken>| bytes.map_or(Shape::Unknown(self.kind), Shape::Fixed);
        let fraction = |clock: usize| {
            fixed(super::number::fraction_bytes(digits).map(|fraction| clock + fraction))
        };
        match self.kind {
            t::NULL => Shape::Fixed(0),
            t::TINY | t::YEAR => Shape::Fixed(1),
            t::SHORT => Shape::Fixed(2),
            t::INT24 | t::DATE | t::OLD_TIME => Shape::Fixed(3),
            t::LONG | t::FLOAT | t::OLD_TIMESTAMP => Shape::Fixed(4),
            t::LONGLONG | t::DOUBLE | t::OLD_DATETIME => Shape::Fixed(8),
            t::TIMESTAMP => fraction(4),
            t::DATETIME => fraction(5),
            t::TIME => fraction(3),
            t::DECIMAL => fixed(super::number::decimal_bytes(high, low)),
            t::BIT => Shape::Fixed(usize::from(high) + usize::from(low > 0)),
            t::ENUM | t::SET => Shape::Fixed(usize::from(low)),
            t::STRING | t::VARCHAR | t::VAR_STRING | t::VARCHAR_COMPRESSED => {
                Shape::Prefixed(if self.meta > 255 { 2 } else { 1 })
            }
            t::BLOB | t::JSON | t::GEOMETRY | t::VECTOR | t::BLOB_COMPRESSED
                if (1..=4).contains(&self.meta) =>
            {
                Shape::Prefixed(usize::from(self.meta))
            }
            other => Shape::Unknown(other),
        }
    }

    fn form(&self, known: &Column, collations: &Collations) -> Result<Form, String> {
        if matches!(known.generated, Some(Generated::Stored | Generated::Virtual)) {
            return Ok(Form::Skip(self.shape()));
        }
        let native = ColumnType::parse(&known.native).map_err(|error| error.to_string())?;
        self.decoder(&native, known, collations)?
            .ok_or_else(|| format!("its type is no longer {}", known.native))
    }

    /// The decoder for values of type `native`, if that is what the event says.
    fn decoder(
        &self,
        native: &ColumnType,
        known: &Column,
        collations: &Collations,
    ) -> Result<Option<Form>, String> {
        let (Shape::Prefixed(prefix) | Shape::Fixed(prefix)) = self.shape() else {
            return Ok(None);
        };
        let digits = |wanted: u8| self.meta == u16::from(wanted);
        let [high, low] = self.meta.to_be_bytes();
        let is_binary = self.collation == Some(BINARY_COLLATION);
        let right_type = matches!(
            (native, self.kind),
            (ColumnType::Int { bits: 8, .. }, t::TINY)
                | (ColumnType::Int { bits: 16, .. }, t::SHORT)
                | (ColumnType::Int { bits: 24, .. }, t::INT24)
                | (ColumnType::Int { bits: 32, .. }, t::LONG)
                | (ColumnType::Int { bits: 64, .. }, t::LONGLONG)
                | (ColumnType::Year, t::YEAR)
                | (ColumnType::Decimal { .. }, t::DECIMAL)
                | (ColumnType::Float, t::FLOAT)
                | (ColumnType::Double, t::DOUBLE)
                | (ColumnType::Date, t::DATE)
                | (ColumnType::Time { .. }, t::TIME)
                | (ColumnType::DateTime { .. }, t::DATETIME)
                | (ColumnType::Timestamp { .. }, t::TIMESTAMP)
                | (ColumnType::Char { .. } | ColumnType::Binary { .. }, t::STRING)
                | (ColumnType::VarChar { .. } | ColumnType::VarBinary { .. }, t::VARCHAR)
                | (ColumnType::Text | ColumnType::Blob, t::BLOB)
                | (ColumnType::Json, t::JSON)
                | (ColumnType::Enum { .. }, t::ENUM)
        );
        if !right_type {
            if matches!(self.kind, t::OLD_TIME | t::OLD_TIMESTAMP | t::OLD_DATETIME) {
                return Err(
                    "it is stored in the format of MySQL 5.5: run ALTER TABLE … FORCE".into()
                );
            }
            return Ok(None);
        }
        Ok(match native {
            ColumnType::Int { bits, signed } if *signed != self.unsigned => {
                Some(Form::Int { bytes: usize::from(*bits / 8), signed: *signed })
            }
            ColumnType::Year => Some(Form::Year),
            ColumnType::Decimal { precision, scale } if (*precision, *scale) == (high, low) => {
                Some(Form::Decimal { precision: *precision, scale: *scale })
            }
            ColumnType::Float => Some(Form::Float),
            ColumnType::Double => Some(Form::Double),
            ColumnType::Date => Some(Form::Date),
            ColumnType::Time { digits: d } if digits(*d) => Some(Form::Time { digits: *d }),
            ColumnType::DateTime { digits: d } if digits(*d) => Some(Form::DateTime { digits: *d }),
            ColumnType::Timestamp { digits: d } if digits(*d) => {
                Some(Form::Timestamp { digits: *d })
            }
            ColumnType::Binary { length } if is_binary => {
                let padded_to = usize::try_from(*length).unwrap_or(0);
                Some(Form::Bytes { prefix, padded_to })
            }
            ColumnType::VarBinary { .. } | ColumnType::Blob if is_binary => {
                Some(Form::Bytes { prefix, padded_to: 0 })
            }
            ColumnType::Char { .. } | ColumnType::VarChar { .. } | ColumnType::Text => {
                let charset = self.charset(known, collations)?;
                let padded = matches!(native, ColumnType::Char { .. });
                Some(Form::Text { prefix, charset, padded })
            }
            ColumnType::Json => Some(Form::Json { prefix }),
            ColumnType::Enum { labels } => {
                let charset = self.charset(known, collations)?;
                self.check_labels(labels, charset)?;
                Some(Form::Enum { bytes: usize::from(low), labels: labels.clone() })
            }
            _ => None,
        })
    }

    /// The column's character set, which must still be the one that is known.
    fn charset(&self, known: &Column, collations: &Collations) -> Result<Charset, String> {
        let known = known.charset.as_deref().unwrap_or_default();
        let number = self.collation.ok_or("the binlog does not say its character set")?;
        let found = collations.get(&number).map_or("", String::as_str);
        let plain = |name| if name == "utf8" { "utf8mb3" } else { name };
        if plain(found) != plain(known) {
            return Err(format!("its character set is {found}, not {known}"));
        }
        Charset::named(known).ok_or_else(|| format!("character set {known} is not supported"))
    }

    fn check_labels(&self, known: &[String], charset: Charset) -> Result<(), String> {
        let found = self.labels.as_ref().ok_or("the binlog does not say its labels")?;
        let mut same = found.len() == known.len();
        for (found, known) in found.iter().zip(known) {
            let mut text = String::new();
            charset.decode(found, &mut text).map_err(|error| error.to_string())?;
            same &= text == *known;
        }
        if same { Ok(()) } else { Err("its labels are others".into()) }
    }
}
