//! Canonical decimals as PostgreSQL's binary numeric.
//!
//! | bytes | field | |
//! |---|---|---|
//! | 2 | digit count | of base 10,000 |
//! | 2 | weight | of the first digit, as a power of 10,000 |
//! | 2 | sign | 0x0000, 0x4000 negative, 0xC000 NaN, 0xD000 infinity, 0xF000 minus infinity |
//! | 2 | scale | decimal digits after the point, as shown |
//! | 2 each | digits | no zero first, none last |

use bytes::{BufMut, BytesMut};

use super::unfit::Unfit;

const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const INFINITY: u16 = 0xD000;
const MINUS_INFINITY: u16 = 0xF000;
/// Decimal digits in one of base 10,000.
const GROUP: usize = 4;

/// Appends the binary numeric of `text`, without its length.
pub(super) fn put(out: &mut BytesMut, text: &str) -> Result<(), Unfit> {
    match text {
        "NaN" => return special(out, NAN),
        "Infinity" => return special(out, INFINITY),
        "-Infinity" => return special(out, MINUS_INFINITY),
        _ => {}
    }
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.len() + fraction.len() == 0 || !plain(whole) || !plain(fraction) {
        return Err(Unfit::Malformed);
    }
    put_digits(out, negative, whole.as_bytes(), fraction.as_bytes())
}

fn special(out: &mut BytesMut, sign: u16) -> Result<(), Unfit> {
    out.put_u32(0);
    out.put_u16(sign);
    out.put_u16(0);
    Ok(())
}

fn put_digits(
    out: &mut BytesMut,
    negative: bool,
    whole: &[u8],
    fraction: &[u8],
) -> Result<(), Unfit> {
    let scale = u16::try_from(fraction.len()).map_err(|_| Unfit::Range)?;
    let start = out.len();
    out.put_u64(0);
    // The first group of the whole part is short where its length is no multiple of four.
    let (head, tail) = whole.split_at(whole.len() % GROUP);
    let whole_groups = whole.len().div_ceil(GROUP);
    let groups =
        (!head.is_empty()).then_some(head).into_iter().chain(tail.chunks(GROUP)).map(value).chain(
            fraction
                .chunks(GROUP)
                .map(|group| (group.len()..GROUP).fold(value(group), |digit, _| digit * 10)),
        );
    let (mut leading, mut kept, mut zeros) = (0_usize, 0_usize, 0_usize);
    for digit in groups {
        if digit == 0 {
            // A zero counts only between digits that are none.
            let count = if kept == 0 { &mut leading } else { &mut zeros };
            *count += 1;
            continue;
        }
        for _ in 0..zeros {
            out.put_u16(0);
        }
        out.put_u16(digit);
        kept += zeros + 1;
        zeros = 0;
    }
    let number = |count: usize| i64::try_from(count).map_err(|_| Unfit::Range);
    let weight = if kept == 0 { 0 } else { number(whole_groups)? - 1 - number(leading)? };
    let count = i16::try_from(kept).map_err(|_| Unfit::Range)?;
    let weight = i16::try_from(weight).map_err(|_| Unfit::Range)?;
    let sign = if negative && kept > 0 { NEGATIVE } else { 0 };
    let mut header = &mut out[start..];
    header.put_i16(count);
    header.put_i16(weight);
    header.put_u16(sign);
    header.put_u16(scale);
    Ok(())
}

/// Up to four decimal digits as a number.
fn value(group: &[u8]) -> u16 {
    group.iter().fold(0, |digit, byte| digit * 10 + u16::from(byte - b'0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    fn binary(text: &str) -> Vec<u16> {
        let mut out = BytesMut::new();
        put(&mut out, text).unwrap();
        out.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
    }

    #[test]
    fn decimals_as_numeric_send_prints_them() {
        let minus_one = u16::MAX;
        let check = |text, words: &[u16]| assert_eq!(binary(text), words, "{text}");
        check("0", &[0, 0, 0, 0]);
        check("-0.00", &[0, 0, 0, 2]);
        check("1", &[1, 0, 0, 0, 1]);
        check("-123.4500", &[2, 0, NEGATIVE, 4, 123, 4500]);
        check("10000", &[1, 1, 0, 0, 1]);
        check("120000.05", &[3, 1, 0, 2, 12, 0, 500]);
        check("0.0001", &[1, minus_one, 0, 4, 1]);
        check("0.00001", &[1, minus_one - 1, 0, 5, 1000]);
        check("NaN", &[0, 0, NAN, 0]);
        check("Infinity", &[0, 0, INFINITY, 0]);
        check("-Infinity", &[0, 0, MINUS_INFINITY, 0]);
    }

    #[test]
    fn what_is_no_decimal_is_refused() {
        for text in ["", "-", ".", "1e5", "+1", "1.2.3", "nan", " 1"] {
            assert_eq!(put(&mut BytesMut::new(), text), Err(Unfit::Malformed), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused_without_a_panic(text in any::<String>(), digits in "-?[0-9]{0,99}[.]?[0-9]{0,99}") {
            for text in [text, digits] {
                let mut out = BytesMut::new();
                assert!(put(&mut out, &text).is_ok() || put(&mut out, &text).is_err());
            }
        }
    }
}
