//! Why a message is refused: one name for each thing that two parsers could read in two ways.

/// What is wrong with a message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[expect(missing_docs, reason = "`text` says it")]
pub enum Fault {
    HeadTooLong,
    TooManyHeaders,
    BareLineFeed,
    LeadingLines,
    RequestLine,
    StatusLine,
    Version,
    HeaderName,
    HeaderValue,
    Folded,
    SpaceBeforeColon,
    Fragment,
    Target,
    LengthAndCoding,
    LengthTwice,
    Length,
    Coding,
    CodingInOldVersion,
    HostMissing,
    HostTwice,
    Host,
    HostDiffers,
    ConnectionOption,
    ChunkSize,
    ChunkExtension,
    ChunkEnd,
    Trailers,
    BodyWhereNone,
    UnaskedSwitch,
    TooManyInterim,
    Truncated,
}

impl Fault {
    /// In a few words, as flows say it.
    pub fn text(self) -> &'static str {
        match self {
            Self::HeadTooLong => "head of more than 64 KB",
            Self::TooManyHeaders => "more than 128 header lines",
            Self::BareLineFeed => "line that ends with LF alone",
            Self::LeadingLines => "more than one empty line before the request",
            Self::RequestLine => "malformed request line",
            Self::StatusLine => "malformed status line",
            Self::Version => "neither HTTP/1.1 nor HTTP/1.0",
            Self::HeaderName => "malformed header name",
            Self::HeaderValue => "control character in a header value",
            Self::Folded => "header line continued on the next",
            Self::SpaceBeforeColon => "space before a header's colon",
            Self::Fragment => "fragment (#) in the request target",
            Self::Target => "request target of no known form",
            Self::LengthAndCoding => "both Content-Length and Transfer-Encoding",
            Self::LengthTwice => "more than one Content-Length",
            Self::Length => "malformed Content-Length",
            Self::Coding => "Transfer-Encoding other than exactly chunked",
            Self::CodingInOldVersion => "Transfer-Encoding in HTTP/1.0",
            Self::HostMissing => "no Host header",
            Self::HostTwice => "more than one Host header",
            Self::Host => "malformed Host",
            Self::HostDiffers => "Host differs from the request target",
            Self::ConnectionOption => "Connection names a header that is not hop-by-hop",
            Self::ChunkSize => "malformed chunk size",
            Self::ChunkExtension => "malformed or too long chunk extension",
            Self::ChunkEnd => "chunk longer than its size",
            Self::Trailers => "malformed or forbidden trailers",
            Self::BodyWhereNone => "body where none may be",
            Self::UnaskedSwitch => "101 that was not asked for",
            Self::TooManyInterim => "too many interim responses",
            Self::Truncated => "message that ends before its end",
        }
    }
}
