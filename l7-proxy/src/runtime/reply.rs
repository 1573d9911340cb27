//! Answers that the proxy gives itself.

/// One of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reply {
    /// The request is not one that can be judged.
    BadRequest,
    /// Policy does not allow it.
    Denied,
    /// The head has not come in time.
    Timeout,
    /// The client's workload has too much under way.
    TooMany,
    /// The server's answer is none.
    BadGateway,
    /// The server cannot be reached, or its workload has too much under way.
    Unavailable,
    /// The server cannot be reached in time.
    GatewayTimeout,
}

impl Reply {
    pub(super) fn code(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Denied => 403,
            Self::Timeout => 408,
            Self::TooMany => 429,
            Self::BadGateway => 502,
            Self::Unavailable => 503,
            Self::GatewayTimeout => 504,
        }
    }

    fn text(self) -> (&'static str, &'static str) {
        match self {
            Self::BadRequest => ("Bad Request", "Bad request\r\n"),
            Self::Denied => ("Forbidden", "Access denied\r\n"),
            Self::Timeout => ("Request Timeout", "Request timeout\r\n"),
            Self::TooMany => ("Too Many Requests", "Too many requests\r\n"),
            Self::BadGateway => ("Bad Gateway", "Bad gateway\r\n"),
            Self::Unavailable => ("Service Unavailable", "Service unavailable\r\n"),
            Self::GatewayTimeout => ("Gateway Timeout", "Gateway timeout\r\n"),
        }
    }

    /// What it says.
    pub(super) fn body(self) -> &'static str {
        self.text().1
    }

    /// The same as a status of gRPC, by the map that its clients use for HTTP statuses.
    pub(super) fn grpc(self) -> &'static str {
        match self {
            Self::BadRequest => "13",
            Self::Denied => "7",
            Self::Timeout => "2",
            Self::TooMany | Self::BadGateway | Self::Unavailable | Self::GatewayTimeout => "14",
        }
    }

    /// The whole of it. HEAD is answered without the body that the head announces.
    pub(super) fn write(self, is_head: bool, closes: bool, out: &mut Vec<u8>) {
        let (phrase, body) = self.text();
        let close = if closes { "connection: close\r\n" } else { "" };
        let (code, length) = (self.code().to_string(), body.len().to_string());
        let body = if is_head { "" } else { body };
        out.clear();
        for part in [
            "HTTP/1.1 ",
            &code,
            " ",
            phrase,
            "\r\ncontent-type: text/plain\r\ncontent-length: ",
            &length,
            "\r\n",
            close,
            "\r\n",
            body,
        ] {
            out.extend_from_slice(part.as_bytes());
        }
    }
}
