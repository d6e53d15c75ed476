//! Zig-zag varints as records use them: i32 in at most 5 bytes, i64 in at most 10.

use bytes::{BufMut, BytesMut};

/// Reads a signed varint of up to 64 bits from the front of `buf`; `None` if it does not end.
pub(super) fn read_i64(buf: &mut &[u8]) -> Option<i64> {
    let mut value = 0_u64;
    for (index, byte) in buf.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (index * 7);
        if byte & 0x80 == 0 {
            *buf = &buf[index + 1..];
            return Some((value >> 1).cast_signed() ^ -((value & 1).cast_signed()));
        }
    }
    None
}

/// Reads a signed varint that must fit 32 bits.
pub(super) fn read_i32(buf: &mut &[u8]) -> Option<i32> {
    read_i64(buf).and_then(|value| i32::try_from(value).ok())
}

/// Appends `value`.
pub(super) fn write(buf: &mut BytesMut, value: i64) {
    let mut rest = zigzag(value);
    while rest > 0x7f {
        buf.put_u8(rest.to_le_bytes()[0] | 0x80);
        rest >>= 7;
    }
    buf.put_u8(rest.to_le_bytes()[0]);
}

/// Bytes that [`write`] takes for `value`: 1 to 10.
pub(super) fn len(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros();
    usize::try_from(bits.div_ceil(7)).unwrap_or(10)
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn comes_back_as_written_in_the_length_promised(value: i64) {
            let mut buf = BytesMut::new();
            write(&mut buf, value);
            prop_assert_eq!(buf.len(), len(value));
            let mut rest = &buf[..];
            prop_assert_eq!(read_i64(&mut rest), Some(value));
            prop_assert!(rest.is_empty());
        }
    }

    #[test]
    fn an_endless_varint_is_refused() {
        assert_eq!(read_i64(&mut &[0xff; 11][..]), None);
        assert_eq!(read_i64(&mut &[][..]), None);
        assert_eq!(read_i32(&mut &[0xff, 0xff, 0xff, 0xff, 0x7f][..]), None);
    }
}
