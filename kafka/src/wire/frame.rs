//! Frames: a length, a header, a message.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kacrab_protocol::{
    primitives::read_unsigned_varint,
    string::{read_nullable_string, write_nullable_string},
    version::{client_api_info, request_header_version, response_header_version},
};

use super::{ApiKey, KafkaString, Request, Response, WireError, fetch, produce};

/// The largest frame with record batches: Kafka's `socket.request.max.bytes`.
pub const DATA_FRAME_BYTES: usize = 100 << 20;

/// The largest frame of every other request.
///
/// An element of an array may take 1 byte on the wire and over 100 in memory: without this limit a
/// crafted frame of 100 MiB costs ten gigabytes before it is refused.
pub const CONTROL_FRAME_BYTES: usize = 2 << 20;

/// The largest response: a Fetch gives its first batch whatever the limits asked for.
const RESPONSE_FRAME_BYTES: usize = 256 << 20;

/// What stands before a request's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestHeader {
    /// The API.
    pub api: ApiKey,
    /// The version of its messages, for request and response.
    pub version: i16,
    /// Chosen by the client, repeated in the response.
    pub correlation_id: i32,
    /// What the client calls itself.
    pub client_id: Option<KafkaString>,
}

/// A request frame, as far as it can be understood.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "taken apart where it is made, never kept")]
pub enum Decoded {
    /// A request.
    Request(RequestHeader, Request),
    /// An ApiVersions request of a version from the future: to be answered with
    /// [`super::unsupported_api_versions`] in version 0.
    UnsupportedApiVersions {
        /// To be repeated in the response.
        correlation_id: i32,
    },
}

/// The largest frame to read for a request of API `api_key`, in bytes after the length.
#[must_use]
pub fn frame_limit(api_key: i16) -> usize {
    if api_key == ApiKey::Produce as i16 { DATA_FRAME_BYTES } else { CONTROL_FRAME_BYTES }
}

/// The largest response frame a client reads, in bytes after the length.
pub(crate) fn check_response_length(length: i32) -> Result<usize, WireError> {
    usize::try_from(length).ok().filter(|length| *length <= RESPONSE_FRAME_BYTES).ok_or_else(|| {
        WireError::FrameTooLarge {
            length: i64::from(length),
            limit: RESPONSE_FRAME_BYTES,
            api: "response".to_owned(),
        }
    })
}

/// Checks the length that a request frame announces, given the API key behind it.
pub(crate) fn check_request_length(length: i32, api_key: i16) -> Result<usize, WireError> {
    let limit = frame_limit(api_key);
    usize::try_from(length).ok().filter(|length| *length <= limit).ok_or_else(|| {
        WireError::FrameTooLarge {
            length: i64::from(length),
            limit,
            api: ApiKey::from_i16(api_key)
                .map_or_else(|| format!("api key {api_key}"), |api| format!("{api:?}")),
        }
    })
}

/// Decodes a request frame (without its length). Record batches stay slices of it.
///
/// # Errors
/// If the frame is not a request of a known API and version; the connection then ends, because
/// the protocol has no response to an unknown request.
pub fn decode_request(frame: Bytes) -> Result<Decoded, WireError> {
    let mut buf = frame;
    if buf.len() < 8 {
        return Err(WireError::CutOff { what: "request header" });
    }
    let api_key = buf.get_i16();
    let version = buf.get_i16();
    let correlation_id = buf.get_i32();
    let api = ApiKey::from_i16(api_key).ok_or(WireError::UnknownApi(api_key))?;
    let known = client_api_info(api);
    if version < known.min_version || version > known.max_version {
        if api == ApiKey::ApiVersions {
            return Ok(Decoded::UnsupportedApiVersions { correlation_id });
        }
        return Err(WireError::UnsupportedVersion { api, version });
    }
    let as_error = |source: kacrab_protocol::ProtocolError| WireError::Message {
        direction: "decode request",
        api,
        version,
        source,
    };
    let client_id = read_nullable_string(&mut buf).map_err(|error| as_error(error.into()))?;
    if request_header_version(api_key, version) >= 2 {
        skip_tags(&mut buf)?;
    }
    let request = if api == ApiKey::Produce {
        Request::Produce(produce::read(&mut buf, version)?)
    } else {
        Request::read(api, &mut buf, version)
            .map_err(as_error)?
            .ok_or(WireError::UnknownApi(api_key))?
    };
    Ok(Decoded::Request(RequestHeader { api, version, correlation_id, client_id }, request))
}

/// Encodes a request as a list of slices, the length first. Record batches are not copied.
///
/// # Errors
/// If the request has no form in this version.
pub fn encode_request(header: &RequestHeader, request: &Request) -> Result<Vec<Bytes>, WireError> {
    let RequestHeader { api, version, .. } = *header;
    let as_error = |source: kacrab_protocol::ProtocolError| WireError::Message {
        direction: "encode request",
        api,
        version,
        source,
    };
    let mut out = Scatter::new();
    out.buf.put_i16(api as i16);
    out.buf.put_i16(version);
    out.buf.put_i32(header.correlation_id);
    write_nullable_string(&mut out.buf, header.client_id.as_ref())
        .map_err(|error| as_error(error.into()))?;
    if request_header_version(api as i16, version) >= 2 {
        out.buf.put_u8(0);
    }
    match request {
        Request::Produce(produce) => produce::write(produce, &mut out, version),
        other => other.write(&mut out.buf, version),
    }
    .map_err(as_error)?;
    out.finish(api)
}

/// Decodes a response frame (without its length) to the request of `header`.
///
/// # Errors
/// If the frame does not answer that request; the connection is then of no more use.
pub fn decode_response(header: &RequestHeader, frame: Bytes) -> Result<Response, WireError> {
    let RequestHeader { api, version, correlation_id: expected, .. } = *header;
    let mut buf = frame;
    if buf.len() < 4 {
        return Err(WireError::CutOff { what: "response header" });
    }
    let actual = buf.get_i32();
    if actual != expected {
        return Err(WireError::OutOfStep { expected, actual });
    }
    if response_header_version(api as i16, version) >= 1 {
        skip_tags(&mut buf)?;
    }
    Response::read(api, &mut buf, version)
        .map_err(|source| WireError::Message {
            direction: "decode response",
            api,
            version,
            source,
        })?
        .ok_or(WireError::UnknownApi(api as i16))
}

/// Encodes the response to the request of `header` as a list of slices, the length first. Record
/// batches are not copied.
///
/// # Errors
/// If the response has no form in the request's version.
pub fn encode_response(
    header: &RequestHeader,
    response: &Response,
) -> Result<Vec<Bytes>, WireError> {
    let RequestHeader { api, version, .. } = *header;
    let mut out = Scatter::new();
    out.buf.put_i32(header.correlation_id);
    if response_header_version(api as i16, version) >= 1 {
        out.buf.put_u8(0);
    }
    match response {
        Response::Fetch(fetch) => fetch::write(fetch, &mut out, version),
        other => other.write(&mut out.buf, version),
    }
    .map_err(|source| WireError::Message {
        direction: "encode response",
        api,
        version,
        source,
    })?;
    out.finish(api)
}

/// A frame being written: what was written here, with slices in between that were not copied.
pub(super) struct Scatter {
    parts: Vec<Bytes>,
    pub(super) buf: BytesMut,
}

impl Scatter {
    fn new() -> Self {
        let mut buf = BytesMut::with_capacity(256);
        buf.put_i32(0);
        Self { parts: Vec::new(), buf }
    }

    /// Without room for a length: for a part of a message.
    pub(super) fn bare() -> Self {
        Self { parts: Vec::new(), buf: BytesMut::new() }
    }

    /// Small slices are cheaper copied than written as their own part.
    const COPY_BELOW_BYTES: usize = 1024;

    pub(super) fn put_slice(&mut self, slice: &Bytes) {
        if slice.len() < Self::COPY_BELOW_BYTES {
            self.buf.put_slice(slice);
            return;
        }
        let before = self.buf.split().freeze();
        self.parts.push(before);
        self.parts.push(slice.clone());
    }

    /// Writes the length into the first part.
    fn finish(mut self, api: ApiKey) -> Result<Vec<Bytes>, WireError> {
        let total: usize = self.parts.iter().map(Bytes::len).sum::<usize>() + self.buf.len();
        let length = i32::try_from(total - 4).map_err(|_| WireError::FrameTooLarge {
            length: i64::try_from(total).unwrap_or(i64::MAX),
            limit: RESPONSE_FRAME_BYTES,
            api: format!("{api:?}"),
        })?;
        let tail = self.buf.freeze();
        let Some(first) = self.parts.first_mut() else {
            let mut only = BytesMut::from(tail);
            only[..4].copy_from_slice(&length.to_be_bytes());
            return Ok(vec![only.freeze()]);
        };
        let mut head = BytesMut::from(std::mem::take(first));
        head[..4].copy_from_slice(&length.to_be_bytes());
        *first = head.freeze();
        if !tail.is_empty() {
            self.parts.push(tail);
        }
        Ok(self.parts)
    }
}

/// Skips a tagged-fields section: nothing of ours reads an unknown tag.
pub(super) fn skip_tags(buf: &mut Bytes) -> Result<(), WireError> {
    const CUT_OFF: WireError = WireError::CutOff { what: "tagged fields" };
    let count = read_unsigned_varint(buf).map_err(|_| CUT_OFF)?;
    for _ in 0..count {
        read_unsigned_varint(buf).map_err(|_| CUT_OFF)?;
        let length = read_unsigned_varint(buf).map_err(|_| CUT_OFF)?;
        let length = usize::try_from(length).map_err(|_| CUT_OFF)?;
        if length > buf.len() {
            return Err(CUT_OFF);
        }
        buf.advance(length);
    }
    Ok(())
}
