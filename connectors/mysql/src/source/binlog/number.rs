//! Decimals, dates and times as row images hold them, as canonical text.
//!
//! Layouts: `decimal2bin` in MySQL's `decimal.cc`, `my_*_packed_from_binary` in `my_time.cc`.

use std::fmt::Write as _;

use super::take::{Broken, Take};

/// Decimal digits in a group, and the bytes that a group of fewer digits takes.
const GROUP_DIGITS: usize = 9;
const GROUP_BYTES: [usize; 10] = [0, 1, 1, 2, 2, 3, 3, 4, 4, 4];

/// Seconds of a day.
const DAY: i64 = 86_400;

/// Bytes that a DECIMAL(precision, scale) takes.
pub(crate) fn decimal_bytes(precision: u8, scale: u8) -> Result<usize, Broken> {
    let scale = usize::from(scale);
    let whole = usize::from(precision).checked_sub(scale).ok_or(Broken("a DECIMAL's scale"))?;
    let bytes = |digits: usize| digits / GROUP_DIGITS * 4 + GROUP_BYTES[digits % GROUP_DIGITS];
    Ok(bytes(whole) + bytes(scale))
}

/// Appends a DECIMAL's text: the scale kept, no zeros in front, no sign on zero.
pub(crate) fn decimal(
    take: &mut Take<'_>,
    precision: u8,
    scale: u8,
    out: &mut String,
) -> Result<(), Broken> {
    let raw = take.bytes(decimal_bytes(precision, scale)?)?;
    // The largest, DECIMAL(65, n), takes 30 bytes.
    let mut copy = [0; 40];
    let bytes = copy.get_mut(..raw.len()).ok_or(Broken("a DECIMAL's precision"))?;
    bytes.copy_from_slice(raw);
    let Some(first) = bytes.first_mut() else {
        out.push('0');
        return Ok(());
    };
    // The sign is the first bit, inverted so that bytes sort as numbers; so are negative digits.
    let negative = *first & 0x80 == 0;
    *first ^= 0x80;
    if negative {
        for byte in &mut *bytes {
            *byte = !*byte;
        }
    }
    let zero = bytes.iter().all(|byte| *byte == 0);
    if negative && !zero {
        out.push('-');
    }
    let (mut take, scale) = (Take(bytes), usize::from(scale));
    let whole = usize::from(precision) - scale;
    let from = out.len();
    digits(&mut take, whole % GROUP_DIGITS, out)?;
    for _ in 0..whole / GROUP_DIGITS {
        digits(&mut take, GROUP_DIGITS, out)?;
    }
    let zeros = out[from..].bytes().take_while(|byte| *byte == b'0').count();
    out.replace_range(from..from + zeros, "");
    if out.len() == from {
        out.push('0');
    }
    if scale > 0 {
        out.push('.');
        for _ in 0..scale / GROUP_DIGITS {
            digits(&mut take, GROUP_DIGITS, out)?;
        }
        digits(&mut take, scale % GROUP_DIGITS, out)?;
    }
    Ok(())
}

fn digits(take: &mut Take<'_>, count: usize, out: &mut String) -> Result<(), Broken> {
    if count == 0 {
        return Ok(());
    }
    let value = take.uint_be(GROUP_BYTES[count])?;
    let from = out.len();
    write_number(out, format_args!("{value:0count$}"));
    if out.len() - from != count {
        return Err(Broken("a DECIMAL's digits"));
    }
    Ok(())
}

/// DATE: day, month and year in 24 bits; zero and partial dates as they are.
pub(crate) fn date(take: &mut Take<'_>, out: &mut String) -> Result<(), Broken> {
    let packed = take.uint(3)?;
    write_date(packed >> 9, packed >> 5 & 15, packed & 31, out);
    Ok(())
}

/// DATETIME(digits).
pub(crate) fn datetime(take: &mut Take<'_>, digits: u8, out: &mut String) -> Result<(), Broken> {
    let packed = take.uint_be(5)? & 0x7F_FFFF_FFFF;
    let micros = fraction(take, digits)?;
    let (date, time) = (packed >> 17, packed & 0x1_FFFF);
    let months = date >> 5;
    write_date(months / 13, months % 13, date & 31, out);
    out.push(' ');
    write_time(time >> 12, time >> 6 & 63, time & 63, micros, out);
    Ok(())
}

/// TIMESTAMP(digits), in UTC.
pub(crate) fn timestamp(take: &mut Take<'_>, digits: u8, out: &mut String) -> Result<(), Broken> {
    let seconds = take.uint_be(4)?;
    let micros = fraction(take, digits)?;
    if seconds == 0 && micros == 0 {
        out.push_str("0000-00-00 00:00:00");
    } else {
        let seconds = i64::try_from(seconds).map_err(|_| Broken("a TIMESTAMP's seconds"))?;
        let (year, month, day) = civil(seconds.div_euclid(DAY));
        write_date(year, month, day, out);
        out.push(' ');
        let of_day = seconds.rem_euclid(DAY).unsigned_abs();
        write_time(of_day / 3600, of_day / 60 % 60, of_day % 60, micros, out);
    }
    out.push_str("+00");
    Ok(())
}

/// TIME(digits): an offset from the middle of its range, so that bytes sort as times.
pub(crate) fn time(take: &mut Take<'_>, digits: u8, out: &mut String) -> Result<(), Broken> {
    // As one number: 24 bits of hours, minutes and seconds, then the fraction in `bits` bits.
    let fraction_bytes = fraction_bytes(digits)?;
    let bits = 8 * fraction_bytes;
    let raw = i64::try_from(take.uint_be(3 + fraction_bytes)?).map_err(|_| Broken("a TIME"))?;
    let packed = raw - (0x80_0000 << bits);
    if packed < 0 {
        out.push('-');
    }
    let packed = packed.unsigned_abs();
    let (clock, fraction) = (packed >> bits, packed & ((1 << bits) - 1));
    let micros = scale(fraction, digits)?;
    write_time(clock >> 12 & 0x3FF, clock >> 6 & 63, clock & 63, micros, out);
    Ok(())
}

/// A date and time as binary JSON holds them: the same bits in 64, the fraction in the low 24.
pub(crate) fn packed_datetime(packed: i64, only_date: bool, out: &mut String) {
    let packed = packed.unsigned_abs();
    let (clock, micros) = (packed >> 24, packed & 0xFF_FFFF);
    let (date, time) = (clock >> 17, clock & 0x1_FFFF);
    let months = date >> 5;
    write_date(months / 13, months % 13, date & 31, out);
    if !only_date {
        write_number(
            out,
            format_args!(" {:02}:{:02}:{:02}.{micros:06}", time >> 12, time >> 6 & 63, time & 63),
        );
    }
}

/// A time as binary JSON holds it.
pub(crate) fn packed_time(packed: i64, out: &mut String) {
    if packed < 0 {
        out.push('-');
    }
    let packed = packed.unsigned_abs();
    let (clock, micros) = (packed >> 24, packed & 0xFF_FFFF);
    write_number(
        out,
        format_args!(
            "{:02}:{:02}:{:02}.{micros:06}",
            clock >> 12 & 0x3FF,
            clock >> 6 & 63,
            clock & 63
        ),
    );
}

/// Bytes that a fraction of `digits` digits takes.
pub(crate) fn fraction_bytes(digits: u8) -> Result<usize, Broken> {
    if digits > 6 {
        return Err(Broken("more than six digits of a second"));
    }
    Ok(usize::from(digits.div_ceil(2)))
}

fn fraction(take: &mut Take<'_>, digits: u8) -> Result<u64, Broken> {
    let value = take.uint_be(fraction_bytes(digits)?)?;
    scale(value, digits)
}

/// A fraction as stored (hundredths, ten-thousandths or millionths) in microseconds.
fn scale(fraction: u64, digits: u8) -> Result<u64, Broken> {
    let micros = fraction
        * match fraction_bytes(digits)? {
            0 => 0,
            1 => 10_000,
            2 => 100,
            _ => 1,
        };
    if micros > 999_999 {
        return Err(Broken("a fraction of a second of a second or more"));
    }
    Ok(micros)
}

fn write_date(year: u64, month: u64, day: u64, out: &mut String) {
    put(out, year, 4);
    out.push('-');
    put(out, month, 2);
    out.push('-');
    put(out, day, 2);
}

fn write_time(hour: u64, minute: u64, second: u64, micros: u64, out: &mut String) {
    put(out, hour, 2);
    out.push(':');
    put(out, minute, 2);
    out.push(':');
    put(out, second, 2);
    if micros > 0 {
        out.push('.');
        put(out, micros, 6);
        let kept = out.trim_end_matches('0').len();
        out.truncate(kept);
    }
}

/// At least `width` digits: the formatting machinery costs more than the number.
fn put(out: &mut String, value: u64, width: usize) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(value);
    out.extend(std::iter::repeat_n('0', width.saturating_sub(digits.len())));
    out.push_str(digits);
}

/// Year, month and day of a day since 1970: Howard Hinnant's `civil_from_days`.
fn civil(days: i64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year.unsigned_abs(), month.unsigned_abs(), day.unsigned_abs())
}

fn write_number(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    out.write_fmt(arguments).expect("a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(
        decode: impl FnOnce(&mut Take<'_>, &mut String) -> Result<(), Broken>,
        bytes: &[u8],
    ) -> String {
        let (mut take, mut out) = (Take(bytes), String::new());
        decode(&mut take, &mut out).unwrap();
        assert!(take.is_empty());
        out
    }

    #[test]
    fn decimals_keep_their_scale_and_lose_their_padding() {
        // The example of MySQL's own documentation: 1234567890.1234 as DECIMAL(14,4).
        let bytes = [0x81, 0x0D, 0xFB, 0x38, 0xD2, 0x04, 0xD2];
        assert_eq!(text(|t, o| decimal(t, 14, 4, o), &bytes), "1234567890.1234");
        let negative = bytes.map(|byte| !byte);
        assert_eq!(text(|t, o| decimal(t, 14, 4, o), &negative), "-1234567890.1234");
        assert_eq!(text(|t, o| decimal(t, 4, 2, o), &[0x80, 0x05]), "0.05");
        assert_eq!(text(|t, o| decimal(t, 4, 2, o), &[0x7F, 0xFF]), "0.00");
        assert!(decimal(&mut Take(&[0xFF, 0xFF]), 4, 2, &mut String::new()).is_err());
    }

    #[test]
    fn times_are_canonical_text() {
        assert_eq!(text(date, &[0x5D, 0xD0, 0x0F]), "2024-02-29");
        assert_eq!(text(date, &[0, 0, 0]), "0000-00-00");
        assert_eq!(text(|t, o| timestamp(t, 0, o), &[0, 0, 0, 0]), "0000-00-00 00:00:00+00");
        assert_eq!(
            text(|t, o| timestamp(t, 0, o), &[0x7F, 0xFF, 0xFF, 0xFF]),
            "2038-01-19 03:14:07+00"
        );
        assert_eq!(text(|t, o| time(t, 0, o), &[0x80, 0x10, 0x83]), "01:02:03");
        // -00:00:01.5 in TIME(1)
        assert_eq!(text(|t, o| time(t, 1, o), &[0x7F, 0xFF, 0xFE, 0xCE]), "-00:00:01.5");
    }
}
