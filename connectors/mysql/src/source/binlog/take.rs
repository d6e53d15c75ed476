//! Bytes taken off the front of an event, never beyond its end.

/// The event is not what its type says; no row values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Broken(pub(crate) &'static str);

const SHORT: Broken = Broken("it ends too early");

/// What is left of an event. Numbers are little-endian unless said otherwise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Take<'b>(pub(crate) &'b [u8]);

impl<'b> Take<'b> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'b [u8], Broken> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Broken> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(SHORT)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Broken> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Broken> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Broken> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Broken> {
        self.array().map(u64::from_le_bytes)
    }

    /// A number of `width` bytes, at most eight.
    pub(crate) fn uint(&mut self, width: usize) -> Result<u64, Broken> {
        Ok(self.bytes(width)?.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// The same with the big end first.
    pub(crate) fn uint_be(&mut self, width: usize) -> Result<u64, Broken> {
        Ok(self.bytes(width)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// A length of `width` bytes, and that many bytes.
    pub(crate) fn prefixed(&mut self, width: usize) -> Result<&'b [u8], Broken> {
        let length = usize::try_from(self.uint(width)?).map_err(|_| SHORT)?;
        self.bytes(length)
    }

    /// A length-encoded integer.
    pub(crate) fn length(&mut self) -> Result<usize, Broken> {
        let value = match self.u8()? {
            value @ 0..=0xFA => u64::from(value),
            0xFC => self.uint(2)?,
            0xFD => self.uint(3)?,
            0xFE => self.uint(8)?,
            _ => return Err(Broken("a length begins with 0xFF or NULL")),
        };
        usize::try_from(value).map_err(|_| SHORT)
    }

    /// Bytes behind a length-encoded length.
    pub(crate) fn counted(&mut self) -> Result<&'b [u8], Broken> {
        let length = self.length()?;
        self.bytes(length)
    }

    /// An integer as MySQL's serialization library writes it: as many bytes follow the first as it
    /// has trailing ones.
    pub(crate) fn varlen(&mut self) -> Result<u64, Broken> {
        let more =
            usize::try_from(self.0.first().ok_or(SHORT)?.trailing_ones()).map_err(|_| SHORT)?;
        if more == 8 {
            self.u8()?;
            return self.u64();
        }
        Ok(self.uint(more + 1)? >> (more + 1))
    }
}

/// Whether bit `at` of a bitmap is set, the lowest bit of the first byte being the first.
pub(crate) fn bit(bitmap: &[u8], at: usize) -> bool {
    bitmap.get(at / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1)
}
