//! The four codecs of the protocol, each decoding within a bound.
//!
//! The framings are those the Java client reads and writes: xerial's blocks around snappy, LZ4
//! frames with independent blocks (it refuses dependent ones).

use std::io::{self, Read, Write};

use super::BatchError;

/// How the records of a batch are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// gzip (zlib's deflate).
    Gzip,
    /// Snappy in xerial's framing.
    Snappy,
    /// LZ4 frames.
    Lz4,
    /// Zstandard.
    Zstd,
}

/// What xerial's snappy framing starts with: magic, version and compatible version.
const XERIAL_HEADER: [u8; 16] = *b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01";
/// The part of it that does not change between versions.
const XERIAL_MAGIC_BYTES: usize = 8;
/// xerial's own block size.
const XERIAL_BLOCK_BYTES: usize = 32 * 1024;
/// zstd's default: faster levels lose ratio, slower ones cost the capture loop.
const ZSTD_LEVEL: i32 = 3;

impl Compression {
    /// The codec bits of a batch's attributes.
    #[must_use]
    pub const fn bits(self) -> i16 {
        match self {
            Self::None => 0,
            Self::Gzip => 1,
            Self::Snappy => 2,
            Self::Lz4 => 3,
            Self::Zstd => 4,
        }
    }

    pub(super) fn from_attributes(attributes: i16) -> Result<Self, BatchError> {
        match attributes & 0x07 {
            0 => Ok(Self::None),
            1 => Ok(Self::Gzip),
            2 => Ok(Self::Snappy),
            3 => Ok(Self::Lz4),
            4 => Ok(Self::Zstd),
            other => Err(BatchError::UnknownCodec(other.to_be_bytes()[1])),
        }
    }
}

/// Compresses `records`; `None` stays as it is and is not for this function.
pub(super) fn compress(codec: Compression, records: &[u8]) -> Result<Vec<u8>, BatchError> {
    match codec {
        Compression::None => Ok(records.to_vec()),
        Compression::Gzip => {
            let out = Vec::with_capacity(records.len() / 2);
            let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::default());
            encoder.write_all(records).and_then(|()| encoder.finish()).map_err(BatchError::Compress)
        }
        Compression::Snappy => compress_snappy(records),
        Compression::Lz4 => {
            let info = lz4_flex::frame::FrameInfo::new()
                .block_size(lz4_flex::frame::BlockSize::Max64KB)
                .block_mode(lz4_flex::frame::BlockMode::Independent);
            let out = Vec::with_capacity(records.len() / 2);
            let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, out);
            encoder.write_all(records).map_err(BatchError::Compress)?;
            encoder.finish().map_err(|error| BatchError::Compress(io::Error::other(error)))
        }
        Compression::Zstd => {
            zstd::stream::encode_all(records, ZSTD_LEVEL).map_err(BatchError::Compress)
        }
    }
}

/// Decompresses to at most `limit` bytes.
pub(super) fn decompress(
    codec: Compression,
    bytes: &[u8],
    limit: usize,
) -> Result<Vec<u8>, BatchError> {
    match codec {
        Compression::None => Ok(bytes.to_vec()),
        Compression::Gzip => read_bounded(flate2::read::MultiGzDecoder::new(bytes), limit),
        Compression::Snappy => decompress_snappy(bytes, limit),
        Compression::Lz4 => read_bounded(lz4_flex::frame::FrameDecoder::new(bytes), limit),
        Compression::Zstd => {
            let decoder =
                zstd::stream::read::Decoder::with_buffer(bytes).map_err(BatchError::Decompress)?;
            read_bounded(decoder, limit)
        }
    }
}

fn read_bounded(decoder: impl Read, limit: usize) -> Result<Vec<u8>, BatchError> {
    let mut out = Vec::new();
    let one_more = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    decoder.take(one_more).read_to_end(&mut out).map_err(BatchError::Decompress)?;
    if out.len() > limit {
        return Err(BatchError::TooLarge { limit });
    }
    Ok(out)
}

fn compress_snappy(records: &[u8]) -> Result<Vec<u8>, BatchError> {
    let mut encoder = snap::raw::Encoder::new();
    let mut out = Vec::with_capacity(records.len() / 2 + XERIAL_HEADER.len());
    out.extend_from_slice(&XERIAL_HEADER);
    for block in records.chunks(XERIAL_BLOCK_BYTES) {
        let packed = encoder
            .compress_vec(block)
            .map_err(|error| BatchError::Compress(io::Error::other(error)))?;
        let length = u32::try_from(packed.len()).expect("a block is 32 KiB");
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&packed);
    }
    Ok(out)
}

fn decompress_snappy(bytes: &[u8], limit: usize) -> Result<Vec<u8>, BatchError> {
    let mut out = Vec::new();
    if !bytes.starts_with(&XERIAL_HEADER[..XERIAL_MAGIC_BYTES]) {
        unpack_snappy(bytes, limit, &mut out)?;
        return Ok(out);
    }
    let mut rest = bytes.get(XERIAL_HEADER.len()..).ok_or_else(|| damaged("cut off header"))?;
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        let length =
            usize::try_from(u32::from_be_bytes(*length)).map_err(|_| damaged("block length"))?;
        let block = tail.get(..length).ok_or_else(|| damaged("cut off block"))?;
        unpack_snappy(block, limit, &mut out)?;
        rest = &tail[length..];
    }
    if rest.is_empty() { Ok(out) } else { Err(damaged("bytes after the last block")) }
}

fn unpack_snappy(block: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), BatchError> {
    let as_damaged = |error| BatchError::Decompress(io::Error::other(error));
    let start = out.len();
    let end = start + snap::raw::decompress_len(block).map_err(as_damaged)?;
    if end > limit {
        return Err(BatchError::TooLarge { limit });
    }
    out.resize(end, 0);
    let written =
        snap::raw::Decoder::new().decompress(block, &mut out[start..]).map_err(as_damaged)?;
    out.truncate(start + written);
    Ok(())
}

fn damaged(what: &'static str) -> BatchError {
    BatchError::Decompress(io::Error::new(io::ErrorKind::InvalidData, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Compression; 4] =
        [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

    #[test]
    fn every_codec_gives_back_what_it_was_given() {
        let records: Vec<u8> = (0..200_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        for codec in ALL {
            for length in [0, 1, 32 * 1024, records.len()] {
                let packed = compress(codec, &records[..length]).unwrap();
                assert_eq!(decompress(codec, &packed, length).unwrap(), &records[..length]);
            }
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        for codec in ALL {
            let packed = compress(codec, &vec![0; 1 << 20]).unwrap();
            let error = decompress(codec, &packed, 1000).unwrap_err();
            assert!(matches!(error, BatchError::TooLarge { limit: 1000 }), "{codec:?}: {error}");
        }
    }

    #[test]
    fn snappy_without_framing_is_read_too() {
        let packed = snap::raw::Encoder::new().compress_vec(b"plain snappy").unwrap();
        assert_eq!(decompress(Compression::Snappy, &packed, 100).unwrap(), b"plain snappy");
    }
}
