//! HTTP/1.1, as much as both ends of a load need: heads with `Content-Length`.

use super::client::{Answer, Client, Fault};

/// More than any head that is sent here.
const LONGEST: usize = 128 << 10;

/// Messages of one direction, one after the other.
#[derive(Default)]
pub(crate) struct Messages {
    /// The beginning of a head.
    head: Vec<u8>,
    /// Of the message whose head was read: its status, its length, and what of its body has not come.
    open: Option<Message>,
}

/// What was read of one.
#[derive(Clone, Copy)]
pub(crate) struct Message {
    /// 0 of a request.
    pub(crate) status: u16,
    pub(crate) length: usize,
    left: usize,
}

impl Messages {
    /// Reads on; tells of each message that has come to its end.
    pub(crate) fn take(&mut self, mut bytes: &[u8], mut ended: impl FnMut(Message)) -> Result<(), Fault> {
        while !bytes.is_empty() || self.open.is_some_and(|message| message.left == 0) {
            if let Some(message) = &mut self.open {
                let count = message.left.min(bytes.len());
                message.left -= count;
                bytes = &bytes[count..];
                if message.left > 0 {
                    return Ok(());
                }
                ended(*message);
                self.open = None;
                continue;
            }
            if self.head.is_empty()
                && let Some(length) = end_of_head(bytes)
            {
                self.open = Some(read(&bytes[..length])?);
                bytes = &bytes[length..];
                continue;
            }
            let before = self.head.len();
            self.head.extend_from_slice(bytes);
            let Some(length) = end_of_head(&self.head) else {
                let is_long = self.head.len() > LONGEST;
                return if is_long { Err("a head without an end".to_owned()) } else { Ok(()) };
            };
            self.open = Some(read(&self.head[..length])?);
            self.head.clear();
            bytes = &bytes[length - before..];
        }
        Ok(())
    }
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

fn read(head: &[u8]) -> Result<Message, Fault> {
    let text = std::str::from_utf8(head).map_err(|_| "a head that is no text".to_owned())?;
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = match first.strip_prefix("HTTP/1.1 ") {
        Some(rest) => rest.get(..3).and_then(|digits| digits.parse().ok()).ok_or("a status that is none")?,
        None => 0,
    };
    let mut length = 0;
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(|_| format!("Content-Length:{value}"))?;
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err("Transfer-Encoding, which is not understood here".to_owned());
        }
    }
    Ok(Message { status, length, left: length })
}

/// A client, one request at a time.
pub(crate) struct H1 {
    request: Vec<u8>,
    /// Status and length of a good answer.
    wanted: (u16, usize),
    began: Option<u64>,
    messages: Messages,
}

impl H1 {
    pub(crate) fn new(path: &str, wanted: (u16, usize), padding: usize) -> Self {
        // Lines of a length that servers take.
        let lines = (0..padding.div_ceil(1000))
            .map(|number| format!("X-Padding-{number:03}: {}\r\n", "x".repeat(984)));
        let padding: String = lines.collect();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: server.default.svc.cluster.local\r\nUser-Agent: l7load\r\nAccept: */*\r\n{padding}\r\n"
        );
        Self { request: request.into_bytes(), wanted, began: None, messages: Messages::default() }
    }
}

impl Client for H1 {
    fn begin(&mut self, _: &mut Vec<u8>) {}

    fn ask(&mut self, began: u64, out: &mut Vec<u8>) -> bool {
        if self.began.is_some() {
            return false;
        }
        self.began = Some(began);
        out.extend_from_slice(&self.request);
        true
    }

    fn take(&mut self, bytes: &[u8], _: &mut Vec<u8>, answers: &mut Vec<Answer>) -> Result<(), Fault> {
        let Self { wanted, began, messages, .. } = self;
        messages.take(bytes, |message| {
            let is_good = (message.status, message.length) == *wanted;
            // An answer that nobody has asked for is none.
            answers.push(Answer { began: began.unwrap_or(0), is_good: is_good && began.is_some() });
            *began = None;
        })
    }

    fn asked(&self) -> usize {
        usize::from(self.began.is_some())
    }
}

/// What a server answers each request with.
pub(crate) fn answer(body: usize) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {body}\r\n\r\n");
    [head.into_bytes(), vec![b'x'; body]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_wherever_they_are_cut() {
        let whole = [answer(5), answer(0), b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno".to_vec()]
            .concat();
        for cut in 0..whole.len() {
            let (mut messages, mut seen) = (Messages::default(), Vec::new());
            for part in [&whole[..cut], &whole[cut..]] {
                messages.take(part, |message| seen.push((message.status, message.length))).unwrap();
            }
            assert_eq!(seen, [(200, 5), (200, 0), (403, 2)], "{cut}");
        }
    }

    #[test]
    fn only_the_answer_that_was_wanted_is_good() {
        for (wanted, good) in [((200, 5), true), ((200, 4), false), ((403, 5), false)] {
            let (mut client, mut out, mut answers) = (H1::new("/", wanted, 2500), Vec::new(), Vec::new());
            assert!(client.ask(7, &mut out) && !client.ask(8, &mut out));
            assert!(out.len() > 2500 && out.ends_with(b"\r\n\r\n"));
            client.take(&answer(5), &mut out, &mut answers).unwrap();
            assert_eq!(
                answers.iter().map(|answer| (answer.began, answer.is_good)).collect::<Vec<_>>(),
                [(7, good)]
            );
            assert_eq!(client.asked(), 0);
        }
    }
}
