//! What a server has executed, as it reads it and as the most gullible of readers would.

/// One request, by the server's own word.
#[derive(Debug)]
pub(crate) struct Executed {
    pub(crate) method: String,
    /// As it came.
    pub(crate) target: String,
    /// The path as the server, or a framework of its kind, resolves it.
    resolved: String,
    host: String,
    /// What `X-Role` and its look-alikes say.
    roles: String,
}

impl Executed {
    /// What a line of the server's says, if it says that.
    pub(crate) fn of(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("seen\t")?.split('\t').map(str::to_owned);
        let [method, target, resolved, host, roles] =
            std::array::from_fn(|_| words.next().unwrap_or_default());
        Some(Self { method, target, resolved, host, roles })
    }

    /// Whether the rules allow it, however it is read.
    pub(crate) fn is_allowed(&self) -> bool {
        let allowed = |path: &str| match self.method.as_str() {
            "GET" if path == "/role" => self.roles.split(['|', ',']).all(|role| role.trim() == "user"),
            "GET" if path == "/host" => {
                ["good", "good:80"].contains(&self.host.to_ascii_lowercase().as_str())
            }
            "GET" => path == "/public" || path.starts_with("/public/"),
            "POST" => path == "/upload",
            _ => false,
        };
        allowed(&self.resolved) && allowed(&gullible(&self.target))
    }
}

/// The name of a trailer, if a line of the server's says that it came.
pub(crate) fn trailer(line: &str) -> Option<&str> {
    line.strip_prefix("behind\t")
}

/// Decoded twice, `\` taken for `/`, parameters cut off, empty and dotted segments resolved.
fn gullible(target: &str) -> String {
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    };
    let path = path.split('?').next().unwrap_or_default();
    let path = decoded(&decoded(path)).replace('\\', "/");
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/').map(|segment| segment.split(';').next().unwrap_or_default()) {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

fn decoded(text: &str) -> String {
    let mut decoded = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escape = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match escape.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                decoded.push(byte);
                rest = &tail[2..];
            }
            None => {
                decoded.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// Status of the first final answer of HTTP/1.
pub(crate) fn status(answer: &[u8]) -> Option<u16> {
    let text = String::from_utf8_lossy(answer);
    let statuses = text.split("HTTP/1.").skip(1).filter_map(|line| line.get(2..5)?.parse().ok());
    statuses.into_iter().find(|status| *status >= 200)
}

#[test]
fn the_gullible_reader_sees_what_is_hidden() {
    for hidden in [
        "/public/..%2fadmin",
        "/public/%252e%252e/admin",
        "/public/..;x/admin",
        "/public\\..\\admin",
        "//admin",
    ] {
        assert_eq!(gullible(hidden), "/admin", "{hidden}");
    }
    assert_eq!(gullible("http://h/public/a;b/c?d=/../x"), "/public/a/c");
}
