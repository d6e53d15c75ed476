//! Character sets: from the bytes of a column to UTF-8.
//!
//! Both the snapshot and the stream hand the server's own bytes to this one decoder, so that a row
//! looks the same whichever way it came. The tables are the server's own, recorded from it, so that
//! the text is what its clients see: a test asks it for every code of every character set here. Bytes
//! that a character set does not define are an error, never a `?`.

mod tables;

use encoding_rs::GB18030;

use self::tables::UNDEFINED;

/// A character set that we can decode.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Charset {
    name: &'static str,
    codec: Codec,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Codec {
    /// UTF-8 as it is: utf8mb3, utf8mb4.
    Utf8,
    /// ASCII: the subset of UTF-8.
    Ascii,
    /// One byte, one character; the upper half from a table.
    Single(&'static [u16; 128]),
    /// As `Single`, with national letters in the lower half as well.
    Swe7,
    /// One, two or three bytes a character, from the server's table.
    Multi(&'static [u8]),
    /// One, two or four bytes, by the Encoding Standard.
    Gb18030,
    /// Two or four bytes, the big end first: ucs2 has no surrogates, utf16 has.
    Utf16 { little_endian: bool },
    /// Four bytes, the big end first.
    Utf32,
}

/// Bytes that are not text in their column's character set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are not text in character set {charset}")]
pub(crate) struct NotText {
    charset: &'static str,
}

const fn single(name: &'static str, table: &'static [u16; 128]) -> Charset {
    Charset { name, codec: Codec::Single(table) }
}

const fn multi(name: &'static str, table: &'static [u8]) -> Charset {
    Charset { name, codec: Codec::Multi(table) }
}

static CHARSETS: &[Charset] = &[
    Charset { name: "utf8mb4", codec: Codec::Utf8 },
    Charset { name: "utf8mb3", codec: Codec::Utf8 },
    Charset { name: "utf8", codec: Codec::Utf8 },
    Charset { name: "ascii", codec: Codec::Ascii },
    single("latin1", &tables::LATIN1),
    single("armscii8", &tables::ARMSCII8),
    single("cp1250", &tables::CP1250),
    single("cp1251", &tables::CP1251),
    single("cp1256", &tables::CP1256),
    single("cp1257", &tables::CP1257),
    single("cp850", &tables::CP850),
    single("cp852", &tables::CP852),
    single("cp866", &tables::CP866),
    single("dec8", &tables::DEC8),
    single("geostd8", &tables::GEOSTD8),
    single("greek", &tables::GREEK),
    single("hebrew", &tables::HEBREW),
    single("hp8", &tables::HP8),
    single("keybcs2", &tables::KEYBCS2),
    single("koi8r", &tables::KOI8R),
    single("koi8u", &tables::KOI8U),
    single("latin2", &tables::LATIN2),
    single("latin5", &tables::LATIN5),
    single("latin7", &tables::LATIN7),
    single("macce", &tables::MACCE),
    single("macroman", &tables::MACROMAN),
    single("tis620", &tables::TIS620),
    Charset { name: "swe7", codec: Codec::Swe7 },
    multi("big5", include_bytes!("big5.bin")),
    multi("euckr", include_bytes!("euckr.bin")),
    multi("gb2312", include_bytes!("gb2312.bin")),
    multi("gbk", include_bytes!("gbk.bin")),
    multi("cp932", include_bytes!("cp932.bin")),
    multi("sjis", include_bytes!("sjis.bin")),
    multi("eucjpms", include_bytes!("eucjpms.bin")),
    multi("ujis", include_bytes!("ujis.bin")),
    Charset { name: "gb18030", codec: Codec::Gb18030 },
    Charset { name: "ucs2", codec: Codec::Utf16 { little_endian: false } },
    Charset { name: "utf16", codec: Codec::Utf16 { little_endian: false } },
    Charset { name: "utf16le", codec: Codec::Utf16 { little_endian: true } },
    Charset { name: "utf32", codec: Codec::Utf32 },
];

impl Charset {
    /// The character set called `name`, if we can decode it.
    pub(crate) fn named(name: &str) -> Option<Self> {
        CHARSETS.iter().find(|charset| charset.name == name).copied()
    }

    /// `bytes` as UTF-8 where they are that already.
    ///
    /// # Errors
    /// They are not text.
    pub(crate) fn borrow<'b>(&self, bytes: &'b [u8]) -> Result<Option<&'b str>, NotText> {
        let as_is = match self.codec {
            Codec::Utf8 => true,
            Codec::Utf16 { .. } | Codec::Utf32 | Codec::Swe7 => bytes.is_empty(),
            Codec::Ascii | Codec::Single(_) | Codec::Multi(_) | Codec::Gb18030 => bytes.is_ascii(),
        };
        if as_is {
            return std::str::from_utf8(bytes).map(Some).map_err(|_| self.not_text());
        }
        Ok(None)
    }

    /// Appends `bytes` to `out` as UTF-8.
    ///
    /// # Errors
    /// They are not text; `out` may have got a part of it.
    pub(crate) fn decode(&self, bytes: &[u8], out: &mut String) -> Result<(), NotText> {
        match self.codec {
            Codec::Utf8 | Codec::Ascii => {
                let text = std::str::from_utf8(bytes).map_err(|_| self.not_text())?;
                if self.codec == Codec::Ascii && !text.is_ascii() {
                    return Err(self.not_text());
                }
                out.push_str(text);
            }
            Codec::Single(table) => {
                for &byte in bytes {
                    out.push(self.single(byte, table)?);
                }
            }
            Codec::Swe7 => {
                for &byte in bytes {
                    out.push(swe7(byte).ok_or(self.not_text())?);
                }
            }
            Codec::Multi(table) => self.multi(bytes, table, out)?,
            Codec::Gb18030 => {
                let text = GB18030.decode_without_bom_handling_and_without_replacement(bytes);
                out.push_str(&text.ok_or(self.not_text())?);
            }
            Codec::Utf16 { little_endian } => self.utf16(bytes, little_endian, out)?,
            Codec::Utf32 => self.utf32(bytes, out)?,
        }
        Ok(())
    }

    fn single(&self, byte: u8, table: &[u16; 128]) -> Result<char, NotText> {
        let Some(upper) = byte.checked_sub(128) else { return Ok(char::from(byte)) };
        let code = table[usize::from(upper)];
        if code == UNDEFINED {
            return Err(self.not_text());
        }
        char::from_u32(u32::from(code)).ok_or(self.not_text())
    }

    /// The table: 128 codes of one byte from 0x80 on; those of two bytes, whose first is 0x81 to
    /// 0xFE and whose second 0x40 to 0xFE; where there are any, those of three, which begin with
    /// 0x8F and go on with 0xA1 to 0xFE twice. Two bytes each, little-endian.
    fn multi(&self, mut bytes: &[u8], table: &[u8], out: &mut String) -> Result<(), NotText> {
        let character = |at: usize| {
            let code = u16::from_le_bytes(*table.get(2 * at..)?.first_chunk()?);
            char::from_u32(u32::from(code)).filter(|_| code != UNDEFINED)
        };
        while let Some((&first, rest)) = bytes.split_first() {
            let lead = usize::from(first);
            if first < 0x80 {
                out.push(char::from(first));
                bytes = rest;
            } else if let Some(found) = character(lead - 0x80) {
                out.push(found);
                bytes = rest;
            } else {
                let two = match rest {
                    [second @ 0x40..=0xFE, ..] if (0x81..=0xFE).contains(&first) => {
                        character(128 + (lead - 0x81) * 191 + usize::from(*second) - 0x40)
                    }
                    _ => None,
                };
                let three = match rest {
                    [second @ 0xA1..=0xFE, third @ 0xA1..=0xFE, ..] if first == 0x8F => {
                        let (row, cell) = (usize::from(*second) - 0xA1, usize::from(*third) - 0xA1);
                        character(128 + 126 * 191 + row * 94 + cell)
                    }
                    _ => None,
                };
                let length = if two.is_some() { 1 } else { 2 };
                out.push(two.or(three).ok_or(self.not_text())?);
                bytes = rest.get(length..).ok_or(self.not_text())?;
            }
        }
        Ok(())
    }

    fn utf16(&self, bytes: &[u8], little: bool, out: &mut String) -> Result<(), NotText> {
        let (units, rest) = bytes.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.not_text());
        }
        let units = units
            .iter()
            .map(|unit| if little { u16::from_le_bytes(*unit) } else { u16::from_be_bytes(*unit) });
        for character in char::decode_utf16(units) {
            out.push(character.map_err(|_| self.not_text())?);
        }
        Ok(())
    }

    fn utf32(&self, bytes: &[u8], out: &mut String) -> Result<(), NotText> {
        let (units, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(self.not_text());
        }
        for unit in units {
            let code = u32::from_be_bytes(*unit);
            out.push(char::from_u32(code).ok_or(self.not_text())?);
        }
        Ok(())
    }

    const fn not_text(&self) -> NotText {
        NotText { charset: self.name }
    }
}

/// Swedish letters stand where ASCII has brackets.
fn swe7(byte: u8) -> Option<char> {
    Some(match byte {
        b'@' => 'É',
        b'[' => 'Ä',
        b'\\' => 'Ö',
        b']' => 'Å',
        b'^' => 'Ü',
        b'`' => 'é',
        b'{' => 'ä',
        b'|' => 'ö',
        b'}' => 'å',
        b'~' => 'ü',
        0..=0x7E => char::from(byte),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(charset: &str, bytes: &[u8], expected: Option<&str>) {
        let charset = Charset::named(charset).unwrap();
        let mut text = String::new();
        let decoded = match charset.borrow(bytes) {
            Ok(Some(as_is)) => Ok(as_is.to_owned()),
            Ok(None) => charset.decode(bytes, &mut text).map(|()| text),
            Err(error) => Err(error),
        };
        assert_eq!(decoded.ok().as_deref(), expected, "{} {bytes:02x?}", charset.name);
    }

    #[test]
    fn text_is_decoded_and_what_is_none_is_refused() {
        check("utf8mb4", "zwölf 😀".as_bytes(), Some("zwölf 😀"));
        check("utf8mb4", b"\xff", None);
        check("ascii", b"abc", Some("abc"));
        check("ascii", b"ab\xe4", None);
        check("latin1", b"\x80\xe4\x81", Some("€ä\u{81}"));
        check("koi8r", b"\xf0\xd2", Some("Пр"));
        check("cp1256", b"\xc7", Some("ا"));
        check("greek", b"\xd2", None);
        check("swe7", b"[abc}", Some("Äabcå"));
        check("gbk", b"\xc4\xe3", Some("你"));
        check("sjis", b"\x81\x60a", Some("\u{301C}a"));
        check("cp932", b"\x81\x60", Some("\u{FF5E}"));
        check("big5", b"\xa7\x41", Some("你"));
        check("ucs2", b"\x00a\x04\x1f", Some("aП"));
        check("utf16", b"\xd8\x3d\xde\x00", Some("😀"));
        check("utf16", b"\xd8\x3d", None);
        check("utf16le", b"a\x00", Some("a"));
        check("utf32", b"\x00\x01\xf6\x00", Some("😀"));
        check("utf32", b"\x00\x01\xf6", None);
        assert!(Charset::named("klingon").is_none());
    }
}
