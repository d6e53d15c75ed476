//! Kafka's encoding of numbers and strings in the records of its own topics. Every length is checked
//! against what is there.

use bytes::{Buf, BufMut};

/// A string with a length of 16 bits.
pub(super) fn put_string(to: &mut Vec<u8>, text: &str) {
    // Longer ones are refused at the door.
    to.put_i16(i16::try_from(text.len()).unwrap_or(i16::MAX));
    to.put_slice(text.as_bytes());
}

/// As [`put_string`] wrote it.
pub(super) fn get_string<'a>(from: &mut &'a [u8]) -> Option<&'a str> {
    let length = usize::try_from(from.try_get_i16().ok()?).ok()?;
    take(from, length).and_then(|bytes| std::str::from_utf8(bytes).ok())
}

/// A string of a flexible version: its length plus one as a varint.
pub(super) fn put_compact_string(to: &mut Vec<u8>, text: &str) {
    put_varint(to, u32::try_from(text.len()).map_or(u32::MAX, |length| length.saturating_add(1)));
    to.put_slice(text.as_bytes());
}

/// As [`put_compact_string`] wrote it.
pub(super) fn get_compact_string<'a>(from: &mut &'a [u8]) -> Option<&'a str> {
    let length = usize::try_from(get_varint(from)?.checked_sub(1)?).ok()?;
    take(from, length).and_then(|bytes| std::str::from_utf8(bytes).ok())
}

/// An unsigned varint.
pub(super) fn put_varint(to: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        to.push(u8::try_from(value & 0x7f).unwrap_or_default() | 0x80);
        value >>= 7;
    }
    to.push(u8::try_from(value).unwrap_or_default());
}

/// As [`put_varint`] wrote it.
pub(super) fn get_varint(from: &mut &[u8]) -> Option<u32> {
    let mut value: u32 = 0;
    for shift in (0..32).step_by(7) {
        let byte = from.try_get_u8().ok()?;
        let bits = u32::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// So many bytes, if there are.
pub(super) fn take<'a>(from: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip_and_too_long_ones_are_refused() {
        for value in [0, 1, 127, 128, 300, u32::MAX] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            assert_eq!(get_varint(&mut &bytes[..]), Some(value));
            assert_eq!(get_varint(&mut &bytes[..bytes.len() - 1]), None);
        }
        assert_eq!(get_varint(&mut &[0xff, 0xff, 0xff, 0xff, 0x7f][..]), None);
    }
}
