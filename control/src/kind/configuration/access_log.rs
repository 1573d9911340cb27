//! Keys about what is recorded of requests.

use std::path::PathBuf;

use mesh::access_log::{DEFAULT_JSON, DEFAULT_TEXT, Format, Headers, Layout, MAX_HEADERS};

use super::{Configuration, or, set, values};
use crate::yaml::{At, Fields};

/// Where and how the access log is written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AccessLog {
    /// The file; `/dev/stdout` the agent's output.
    pub path: PathBuf,
    /// What its lines are like.
    pub layout: Layout,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Text,
    Json,
}

const SHAPES: [(Shape, &str); 2] = [(Shape::Json, "json"), (Shape::Text, "text")];

pub(super) fn settings<'a>(all: &mut Configuration, key: &mut impl FnMut(&'static str) -> Option<At<'a>>) {
    all.access_log = key("accessLog").and_then(|at| at.mapping(access_log).flatten());
    set(&mut all.request_id, key("requestId").map(|at| at.boolean()));
}

fn access_log(fields: &Fields<'_>) -> Option<AccessLog> {
    let path = fields.get("path");
    let shape = fields.get("format").and_then(|at| at.one_of(&SHAPES)).unwrap_or(Shape::Json);
    let (text, json) = (fields.get("text"), fields.get("json"));
    let stray = if shape == Shape::Text { &json } else { &text };
    if let Some(at) = stray {
        let (other, own) = if shape == Shape::Text { ("json", "text") } else { ("text", "json") };
        at.error(format_args!("goes with format: {other}, and format is {own}; leave one out"));
    }
    let layout = match shape {
        Shape::Text => text.map_or_else(|| DEFAULT_TEXT.parse().ok(), |at| format(&at)).map(Layout::Text),
        Shape::Json => json.as_ref().map_or_else(default_json, members).map(Layout::Json),
    }?;
    if Headers::of(layout.formats()).are_too_many() {
        fields
            .whole()
            .error(format_args!("names more than {MAX_HEADERS} headers of a request or of an answer"));
    }
    let Some(path) = path else {
        fields.whole().error("path is missing: the file it is written to, or /dev/stdout");
        return None;
    };
    Some(AccessLog { path: values::directory(&path)?, layout })
}

fn default_json() -> Option<Vec<(String, Format)>> {
    DEFAULT_JSON.iter().map(|(name, text)| Some(((*name).to_owned(), text.parse().ok()?))).collect()
}

fn members(at: &At<'_>) -> Option<Vec<(String, Format)>> {
    let members = at.entries().into_iter().map(|(name, at)| Some((name.to_owned(), format(&at)?)));
    // Of each the error is noted.
    let members: Vec<_> = members.collect();
    members.into_iter().collect()
}

fn format(at: &At<'_>) -> Option<Format> {
    match at.text("a text such as \"%START_TIME% %RESPONSE_CODE%\"")?.parse() {
        Ok(format) => Some(format),
        Err(error) => {
            at.error(error);
            None
        }
    }
}

/// Rows of `config view`.
pub(super) fn entries(all: &Configuration) -> [(&'static str, String); 2] {
    let log = all.access_log.as_ref().map(|log| {
        let shape = match &log.layout {
            Layout::Text(_) => "text",
            Layout::Json(_) => "json",
        };
        format!("{} ({shape})", log.path.display())
    });
    [("accessLog", or(log, "(none)")), ("requestId", all.request_id.to_string())]
}
