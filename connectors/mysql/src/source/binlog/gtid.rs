//! Events that begin a transaction: who it is and when it committed.

use std::fmt::Write as _;

use super::header::Header;
use super::take::{Broken, Take};

/// What a transaction says of itself before its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Start {
    /// `uuid:number`, `uuid:tag:number`, `domain-server-number`; none where the server gives none.
    pub(crate) gtid: Option<String>,
    /// Microseconds since 1970, UTC.
    pub(crate) committed_at_us: Option<i64>,
    /// MariaDB: the transaction ends with its one statement.
    pub(crate) standalone: bool,
    /// MariaDB: no BEGIN follows.
    pub(crate) begun: bool,
    /// MariaDB: the transaction is only prepared.
    pub(crate) prepared: bool,
}

/// The field's top bit says that the commit time of the first server follows.
const HAS_ORIGINAL: u64 = 1 << 55;

/// MySQL's GTID and anonymous GTID events.
pub(crate) fn untagged(mut body: Take<'_>, anonymous: bool) -> Result<Start, Broken> {
    body.u8()?;
    let uuid = body.array::<16>()?;
    let number = body.u64()?;
    body.bytes(1 + 8 + 8)?;
    // Servers before 8.0 end here.
    let committed = if body.is_empty() { None } else { Some(body.uint(7)? & !HAS_ORIGINAL) };
    Ok(Start {
        gtid: (!anonymous).then(|| format!("{}:{number}", uuid_text(&uuid))),
        committed_at_us: committed.and_then(|at| i64::try_from(at).ok()),
        standalone: false,
        begun: false,
        prepared: false,
    })
}

/// MySQL's tagged GTID event: fields by number, in the serialization library's format.
pub(crate) fn tagged(mut body: Take<'_>) -> Result<Start, Broken> {
    let whole = body.0.len();
    if body.varlen()? != 1 {
        return Err(Broken("a tagged GTID of an unknown format version"));
    }
    let size = usize::try_from(body.varlen()?).map_err(|_| Broken("a tagged GTID's size"))?;
    body.varlen()?;
    let left = size.checked_sub(whole - body.0.len()).ok_or(Broken("a tagged GTID's size"))?;
    let mut fields = Take(body.bytes(left)?);
    let (mut uuid, mut tag, mut number, mut committed) = ([0; 16], "", None, None);
    while !fields.is_empty() {
        match fields.varlen()? {
            1 => {
                for byte in &mut uuid {
                    *byte = u8::try_from(fields.varlen()?).map_err(|_| Broken("a GTID's uuid"))?;
                }
            }
            // Signed, the sign in the lowest bit; numbers of transactions have none.
            2 => number = Some(fields.varlen()? >> 1),
            3 => {
                let length = fields.varlen()?;
                let length = usize::try_from(length).map_err(|_| Broken("a GTID's tag"))?;
                tag = std::str::from_utf8(fields.bytes(length)?)
                    .map_err(|_| Broken("a GTID's tag"))?;
            }
            6 => committed = i64::try_from(fields.varlen()?).ok(),
            0 | 4 | 5 | 7..=11 => {
                fields.varlen()?;
            }
            _ => return Err(Broken("a tagged GTID with an unknown field")),
        }
    }
    let number = number.ok_or(Broken("a tagged GTID without a number"))?;
    let mut gtid = uuid_text(&uuid);
    if !tag.is_empty() {
        gtid.push(':');
        gtid.push_str(tag);
    }
    write!(gtid, ":{number}").expect("a String takes everything");
    Ok(Start {
        gtid: Some(gtid),
        committed_at_us: committed,
        standalone: false,
        begun: false,
        prepared: false,
    })
}

/// MariaDB's GTID event.
pub(crate) fn mariadb(header: &Header, mut body: Take<'_>) -> Result<Start, Broken> {
    let (number, domain, flags) = (body.u64()?, body.u32()?, body.u8()?);
    Ok(Start {
        gtid: Some(format!("{domain}-{}-{number}", header.server_id)),
        committed_at_us: Some(i64::from(header.timestamp) * 1_000_000),
        standalone: flags & 1 != 0,
        begun: flags & 1 == 0,
        prepared: flags & 64 != 0,
    })
}

fn uuid_text(uuid: &[u8; 16]) -> String {
    let mut text = String::with_capacity(40);
    for (at, byte) in uuid.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        write!(text, "{byte:02x}").expect("a String takes everything");
    }
    text
}
