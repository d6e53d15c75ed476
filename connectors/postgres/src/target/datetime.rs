//! Canonical dates and times as PostgreSQL's binary numbers.
//!
//! | type | number | from |
//! |---|---|---|
//! | date | i32, days | 2000-01-01 |
//! | time | i64, microseconds | midnight |
//! | timestamp, timestamptz | i64, microseconds | 2000-01-01 00:00:00 (UTC) |
//!
//! The greatest and the smallest number are the infinities. The server checks the range again.

use super::unfit::Unfit;

const MICROS_PER_SECOND: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;
/// Days from 1970-01-01 to PostgreSQL's epoch.
const EPOCH: i64 = 10_957;

/// `2024-02-29`, `0044-03-15 BC`, `infinity`: days since 2000-01-01.
pub(super) fn date(text: &str) -> Result<i32, Unfit> {
    match text {
        "infinity" => return Ok(i32::MAX),
        "-infinity" => return Ok(i32::MIN),
        _ => {}
    }
    let (text, before_christ) = era(text);
    i32::try_from(days(text, before_christ)?).map_err(|_| Unfit::Range)
}

/// `HH:MM:SS[.ffffff]`: microseconds since midnight, 24:00:00 included.
pub(super) fn time(text: &str) -> Result<i64, Unfit> {
    if text.starts_with('-') {
        return Err(Unfit::TimeOfDay);
    }
    let micros = micros(text)?;
    if micros > MICROS_PER_DAY { Err(Unfit::TimeOfDay) } else { Ok(micros) }
}

/// The date, a space, the time, ` BC` last: microseconds since 2000-01-01.
pub(super) fn timestamp(text: &str) -> Result<i64, Unfit> {
    match text {
        "infinity" => return Ok(i64::MAX),
        "-infinity" => return Ok(i64::MIN),
        _ => {}
    }
    let (text, before_christ) = era(text);
    moment(text, before_christ)
}

/// As [`timestamp`], with `+00` after the time.
pub(super) fn timestamptz(text: &str) -> Result<i64, Unfit> {
    match text {
        "infinity" => return Ok(i64::MAX),
        "-infinity" => return Ok(i64::MIN),
        _ => {}
    }
    let (text, before_christ) = era(text);
    moment(text.strip_suffix("+00").ok_or(Unfit::Malformed)?, before_christ)
}

fn moment(text: &str, before_christ: bool) -> Result<i64, Unfit> {
    let (date, time) = text.split_once(' ').ok_or(Unfit::Malformed)?;
    let days = days(date, before_christ)?;
    let micros = micros(time)?;
    days.checked_mul(MICROS_PER_DAY).and_then(|day| day.checked_add(micros)).ok_or(Unfit::Range)
}

fn era(text: &str) -> (&str, bool) {
    text.strip_suffix(" BC").map_or((text, false), |text| (text, true))
}

fn days(text: &str, before_christ: bool) -> Result<i64, Unfit> {
    let mut parts = text.splitn(3, '-');
    let mut next = || parts.next().ok_or(Unfit::Malformed).and_then(number);
    let (year, month, day) = (next()?, next()?, next()?);
    if month == 0 || day == 0 || year == 0 {
        return Err(Unfit::ZeroDate);
    }
    let year = if before_christ { 1 - year } else { year };
    if month > 12 || day > days_in(year, month) {
        return Err(Unfit::Malformed);
    }
    // Howard Hinnant's days_from_civil: years begin in March, so that leap days come last.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Ok(era * 146_097 + day_of_era - 719_468 - EPOCH)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year.rem_euclid(4) == 0
            && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0) =>
        {
            29
        }
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn micros(text: &str) -> Result<i64, Unfit> {
    let (clock, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut parts = clock.splitn(3, ':');
    let mut next = || parts.next().ok_or(Unfit::Malformed).and_then(number);
    let (hours, minutes, seconds) = (next()?, next()?, next()?);
    if minutes > 59 || seconds > 59 || fraction.len() > 6 {
        return Err(Unfit::Malformed);
    }
    let mut micros = if fraction.is_empty() { 0 } else { number(fraction)? };
    for _ in fraction.len()..6 {
        micros *= 10;
    }
    let micros = if fraction.is_empty() { 0 } else { micros };
    Ok(((hours * 60 + minutes) * 60 + seconds) * MICROS_PER_SECOND + micros)
}

/// Decimal digits, at most seven: no year, hour or fraction has more.
fn number(text: &str) -> Result<i64, Unfit> {
    if text.is_empty() || text.len() > 7 {
        return Err(Unfit::Malformed);
    }
    text.bytes().try_fold(0, |number, byte| {
        if byte.is_ascii_digit() {
            Ok(number * 10 + i64::from(byte - b'0'))
        } else {
            Err(Unfit::Malformed)
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    #[test]
    fn dates_count_from_2000() {
        let check = |text, days| assert_eq!(date(text), Ok(days), "{text}");
        check("2000-01-01", 0);
        check("2000-02-29", 59);
        check("1999-12-31", -1);
        check("1970-01-01", -10_957);
        check("0001-01-01", -730_119);
        check("0001-12-31 BC", -730_120);
        check("4713-01-01 BC", -2_451_507);
        check("5874897-12-31", 2_145_031_948);
        check("infinity", i32::MAX);
        check("-infinity", i32::MIN);
    }

    #[test]
    fn timestamps_count_microseconds() {
        assert_eq!(timestamp("2000-01-01 00:00:00"), Ok(0));
        assert_eq!(timestamp("2000-01-02 00:00:01.5"), Ok(86_401_500_000));
        assert_eq!(timestamp("1999-12-31 23:59:59.999999"), Ok(-1));
        assert_eq!(timestamptz("2000-01-01 00:00:00.000001+00"), Ok(1));
        assert_eq!(timestamptz("0044-03-15 12:00:00+00 BC"), timestamp("0044-03-15 12:00:00 BC"));
        assert_eq!(timestamp("infinity"), Ok(i64::MAX));
        assert_eq!(timestamptz("-infinity"), Ok(i64::MIN));
        assert_eq!(timestamptz("2000-01-01 00:00:00"), Err(Unfit::Malformed));
    }

    #[test]
    fn what_postgres_lacks_is_named() {
        for text in ["0000-00-00", "2024-00-01", "2024-02-00", "0000-01-01"] {
            assert_eq!(date(text), Err(Unfit::ZeroDate), "{text}");
        }
        assert_eq!(timestamp("0000-00-00 00:00:00"), Err(Unfit::ZeroDate));
        for text in ["-00:00:01", "24:00:00.000001", "838:59:59"] {
            assert_eq!(time(text), Err(Unfit::TimeOfDay), "{text}");
        }
        assert_eq!(time("24:00:00"), Ok(MICROS_PER_DAY));
        assert_eq!(time("23:59:59.1"), Ok(86_399_100_000));
        assert_eq!(date("2023-02-29"), Err(Unfit::Malformed));
    }

    proptest! {
        #[test]
        fn any_text_is_refused_without_a_panic(text in any::<String>(), digits in "[-0-9:. BC+]{0,30}") {
            for text in [text.as_str(), digits.as_str()] {
                assert!(date(text).is_ok() || date(text).is_err());
                assert!(time(text).is_ok() || time(text).is_err());
                assert!(timestamp(text).is_ok() || timestamp(text).is_err());
                assert!(timestamptz(text).is_ok() || timestamptz(text).is_err());
            }
        }
    }
}
