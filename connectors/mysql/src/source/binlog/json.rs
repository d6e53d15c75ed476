//! MySQL's binary JSON as the text that the server prints for it.
//!
//! The layout is `json_binary.h`'s, the text `json_dom.cc`'s (`wrapper_to_string`), down to which
//! doubles get an exponent: the snapshot reads the server's text, and the stream must not differ.

use std::fmt::Write as _;

use super::number;
use super::take::{Broken, Take};

/// The server allows a hundred levels.
const DEPTH: usize = 100;

/// Decimal exponents between which the server prints a double without one (`DBL_DIG`).
const PLAIN_EXPONENTS: std::ops::RangeInclusive<i32> = -14..=15;

/// Characters of a line of the server's base64.
const BASE64_LINE: usize = 76;

/// Appends the text of the document in `bytes`. An empty document is JSON `null`.
pub(crate) fn text(bytes: &[u8], out: &mut String) -> Result<(), Broken> {
    let Some((&kind, rest)) = bytes.split_first() else {
        out.push_str("null");
        return Ok(());
    };
    let mut printer = Printer { out, budget: bytes.len() };
    printer.value(kind, rest, 0)
}

struct Printer<'o> {
    out: &'o mut String,
    /// Values that may still be printed. Each takes a byte and more, so honest documents never get
    /// there; others could point at the same bytes from everywhere.
    budget: usize,
}

impl Printer<'_> {
    fn value(&mut self, kind: u8, bytes: &[u8], depth: usize) -> Result<(), Broken> {
        self.budget = self.budget.checked_sub(1).ok_or(Broken("JSON that holds itself"))?;
        let mut take = Take(bytes);
        match kind {
            0 => self.container(bytes, 2, true, depth),
            1 => self.container(bytes, 4, true, depth),
            2 => self.container(bytes, 2, false, depth),
            3 => self.container(bytes, 4, false, depth),
            4 => self.literal(take.u8()?),
            5 => self.number(i16::from_le_bytes(take.array()?)),
            6 => self.number(take.u16()?),
            7 => self.number(i32::from_le_bytes(take.array()?)),
            8 => self.number(take.u32()?),
            9 => self.number(i64::from_le_bytes(take.array()?)),
            10 => self.number(take.u64()?),
            11 => {
                double(f64::from_le_bytes(take.array()?), self.out);
                Ok(())
            }
            12 => {
                let length = variable_length(&mut take)?;
                self.string(take.bytes(length)?)
            }
            15 => self.opaque(take),
            _ => Err(Broken("JSON of an unknown type")),
        }
    }

    fn number<T: itoa::Integer>(&mut self, value: T) -> Result<(), Broken> {
        self.out.push_str(itoa::Buffer::new().format(value));
        Ok(())
    }

    fn literal(&mut self, value: u8) -> Result<(), Broken> {
        self.out.push_str(match value {
            0 => "null",
            1 => "true",
            2 => "false",
            _ => return Err(Broken("a JSON literal")),
        });
        Ok(())
    }

    fn container(
        &mut self,
        bytes: &[u8],
        width: usize,
        object: bool,
        depth: usize,
    ) -> Result<(), Broken> {
        if depth >= DEPTH {
            return Err(Broken("JSON deeper than the server allows"));
        }
        let mut head = Take(bytes);
        let size = |take: &mut Take<'_>| {
            usize::try_from(take.uint(width)?).map_err(|_| Broken("a JSON offset"))
        };
        let count = size(&mut head)?;
        let whole = size(&mut head)?;
        let bytes = bytes.get(..whole).ok_or(Broken("JSON that ends too early"))?;
        let keys_bytes = if object { count.checked_mul(width + 2) } else { Some(0) };
        let keys_bytes = keys_bytes.ok_or(Broken("a JSON count"))?;
        let mut keys = Take(head.bytes(keys_bytes)?);
        self.out.push(if object { '{' } else { '[' });
        for index in 0..count {
            if index > 0 {
                self.out.push_str(", ");
            }
            if object {
                let (at, length) = (size(&mut keys)?, usize::from(keys.u16()?));
                let key = bytes.get(at..).and_then(|rest| rest.get(..length));
                self.string(key.ok_or(Broken("a JSON key"))?)?;
                self.out.push_str(": ");
            }
            let kind = head.u8()?;
            let entry = head.bytes(width)?;
            // Literals and numbers that fit stand in place of the offset.
            let inline = matches!(kind, 4..=6) || (width == 4 && matches!(kind, 7 | 8));
            if inline {
                self.value(kind, entry, depth + 1)?;
            } else {
                let at = size(&mut Take(entry))?;
                let value = bytes.get(at..).ok_or(Broken("a JSON offset"))?;
                self.value(kind, value, depth + 1)?;
            }
        }
        self.out.push(if object { '}' } else { ']' });
        Ok(())
    }

    fn string(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        let text = std::str::from_utf8(bytes).map_err(|_| Broken("JSON that is not UTF-8"))?;
        self.out.push('"');
        let mut plain = 0;
        for (at, byte) in text.bytes().enumerate() {
            let escaped = match byte {
                b'"' => "\\\"",
                b'\\' => "\\\\",
                8 => "\\b",
                9 => "\\t",
                10 => "\\n",
                12 => "\\f",
                13 => "\\r",
                0..=31 => "",
                _ => continue,
            };
            self.out.push_str(&text[plain..at]);
            plain = at + 1;
            if escaped.is_empty() {
                write!(self.out, "\\u{byte:04x}").expect("a String takes everything");
            } else {
                self.out.push_str(escaped);
            }
        }
        self.out.push_str(&text[plain..]);
        self.out.push('"');
        Ok(())
    }

    /// A value of an SQL type that JSON lacks.
    fn opaque(&mut self, mut take: Take<'_>) -> Result<(), Broken> {
        let kind = take.u8()?;
        let length = variable_length(&mut take)?;
        let mut data = Take(take.bytes(length)?);
        match kind {
            246 => {
                let (precision, scale) = (data.u8()?, data.u8()?);
                return number::decimal(&mut data, precision, scale, self.out);
            }
            7 | 10 | 11 | 12 => {
                let packed = i64::from_le_bytes(data.array()?);
                self.out.push('"');
                match kind {
                    11 => number::packed_time(packed, self.out),
                    _ => number::packed_datetime(packed, kind == 10, self.out),
                }
            }
            _ => {
                write!(self.out, "\"base64:type{kind}:").expect("a String takes everything");
                base64(data.0, self.out);
            }
        }
        self.out.push('"');
        Ok(())
    }
}

/// A length in groups of seven bits, the lowest first.
fn variable_length(take: &mut Take<'_>) -> Result<usize, Broken> {
    let mut length = 0;
    for shift in [0, 7, 14, 21, 28] {
        let byte = take.u8()?;
        length |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return usize::try_from(length).map_err(|_| Broken("a JSON length"));
        }
    }
    Err(Broken("a JSON length"))
}

/// The shortest digits that read back to the same double, laid out as `my_gcvt` does, and `.0`
/// where nothing says that it is no integer.
fn double(value: f64, out: &mut String) {
    // `-1.25e-7`: sign, digits and exponent of the shortest form.
    let shortest = format!("{value:e}");
    let (mantissa, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let (sign, mantissa) = match mantissa.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", mantissa),
    };
    out.push_str(sign);
    let digits = mantissa.replace('.', "");
    // Digits in front of the point.
    let point = exponent.parse::<i32>().unwrap_or(0) + 1;
    if value == 0.0 {
        out.push_str("0.0");
    } else if !PLAIN_EXPONENTS.contains(&point) {
        out.push_str(mantissa);
        write!(out, "e{}", point - 1).expect("a String takes everything");
    } else if point <= 0 {
        out.push_str("0.");
        out.extend(std::iter::repeat_n('0', usize::try_from(-point).unwrap_or(0)));
        out.push_str(&digits);
    } else {
        let point = usize::try_from(point).unwrap_or(0);
        let whole = digits.get(..point).unwrap_or(&digits);
        out.push_str(whole);
        out.extend(std::iter::repeat_n('0', point - whole.len()));
        out.push('.');
        out.push_str(digits.get(point..).filter(|rest| !rest.is_empty()).unwrap_or("0"));
    }
}

fn base64(bytes: &[u8], out: &mut String) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut line = 0;
    for chunk in bytes.chunks(3) {
        if line == BASE64_LINE {
            // The server breaks lines, and prints the break as a string's.
            out.push_str("\\n");
            line = 0;
        }
        let group = chunk.iter().fold(0_usize, |group, byte| group << 8 | usize::from(*byte));
        let group = group << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            if digit <= chunk.len() {
                out.push(char::from(ALPHABET[group >> (18 - 6 * digit) & 63]));
            } else {
                out.push('=');
            }
        }
        line += 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: f64) -> String {
        let mut out = String::new();
        double(value, &mut out);
        out
    }

    #[test]
    fn doubles_look_as_the_server_prints_them() {
        for (value, expected) in [
            (1.0, "1.0"),
            (-0.5, "-0.5"),
            (0.0, "0.0"),
            (1e14, "100000000000000.0"),
            (1e15, "1e15"),
            (1.5e300, "1.5e300"),
            (1e-14, "0.00000000000001"),
            (1e-15, "0.000000000000001"),
            (1e-16, "1e-16"),
            (123.456, "123.456"),
        ] {
            assert_eq!(of(value), expected);
        }
    }

    #[test]
    fn base64_breaks_its_lines() {
        let mut out = String::new();
        base64(b"abcd", &mut out);
        assert_eq!(out, "YWJjZA==");
        out.clear();
        base64(&[0; 58], &mut out);
        assert_eq!(out.find("\\n"), Some(76));
    }

    #[test]
    fn documents_that_point_into_themselves_end() {
        // An array of 200 elements, each the array itself.
        let mut bytes = vec![2, 200, 0, 255, 255];
        for _ in 0..200 {
            bytes.extend([2, 0, 0]);
        }
        bytes.resize(70_000, 0);
        assert!(text(&bytes, &mut String::new()).is_err());
    }
}
