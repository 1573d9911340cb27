//! `Secret`, `v1`: certificates and keys with which the proxy takes part in TLS.
//!
//! Promise: no finding shows a value, and neither does `Debug`. What is accepted is what an API server accepts; only items that
//! are text are of use, for a proxy reads PEM: of the others the names are kept, so that it can be said which they are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mesh::l7::{SecretItems, SecretName, TlsContext};

use crate::yaml::{At, Fields};

/// All items together, bytes, as the API server has it.
const MOST_BYTES: usize = 1 << 20;
/// What the name of an item is made of, for a person.
pub(super) const ITEM: &str = "letters, digits, '-', '_' and '.', at most 253 long";
/// Has a certificate and its key.
const TLS: &str = "kubernetes.io/tls";

/// A Secret as it is written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Secret {
    /// Its namespace and name.
    pub name: SecretName,
    /// The items that are text.
    pub items: SecretItems,
    /// The names of those that are not.
    pub others: BTreeSet<String>,
}

/// Whether a text is the name of an item.
pub(super) fn is_item(text: &str) -> bool {
    let is_of_it = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
    (1..=253).contains(&text.len()) && text.chars().all(is_of_it) && text != "." && !text.starts_with("..")
}

pub(super) fn decode(namespace: String, name: String, fields: &Fields<'_>) -> Secret {
    fields.ignore(&["immutable"]);
    let kind_at = fields.nullable("type");
    let kind = kind_at.as_ref().map(At::string);
    let mut values: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (key, at) in entries(fields, "data") {
        values.insert(key.to_owned(), bytes(&at));
    }
    for (key, at) in entries(fields, "stringData") {
        values.insert(key.to_owned(), text(&at).as_bytes().to_vec());
    }
    if let Some(at) = kind_at.filter(|_| kind.as_deref() == Some(TLS)) {
        for item in [TlsContext::CERTIFICATE, TlsContext::PRIVATE_KEY] {
            if !values.contains_key(item) {
                at.error(format_args!("{TLS}: {item} is missing in data (and in stringData)"));
            }
        }
    }
    let size: usize = values.values().map(Vec::len).sum();
    if size > MOST_BYTES {
        let whole = fields.whole();
        whole.error(format_args!("found {size} bytes in all items, at most {MOST_BYTES} fit a Secret"));
    }
    let (mut items, mut others) = (BTreeMap::new(), BTreeSet::new());
    for (key, value) in values {
        match String::from_utf8(value) {
            Ok(text) => drop(items.insert(key, text)),
            Err(_) => drop(others.insert(key)),
        }
    }
    Secret { name: SecretName { namespace, name }, items: SecretItems(Arc::new(items)), others }
}

/// The items of a field, of which none is shown.
fn entries<'a>(fields: &Fields<'a>, name: &'static str) -> Vec<(&'a str, At<'a>)> {
    let Some(at) = fields.nullable(name) else { return Vec::new() };
    let Some(entries) = at.hidden_entries() else {
        at.error("expected a mapping from names of items to their values");
        return Vec::new();
    };
    for (_, at) in entries.iter().filter(|(key, _)| !is_item(key)) {
        at.error(format_args!("no name of an item; it has {ITEM}"));
    }
    entries
}

fn text<'a>(at: &At<'a>) -> &'a str {
    at.hidden().unwrap_or_else(|| {
        at.error("expected a string: put the value in quotes");
        ""
    })
}

/// Base64 may be broken into lines, as `base64` writes it.
fn bytes(at: &At<'_>) -> Vec<u8> {
    let text: Vec<u8> = text(at).bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    STANDARD.decode(text).unwrap_or_else(|_| {
        at.error("expected base64, with its padding; what is plain text goes to stringData");
        Vec::new()
    })
}
