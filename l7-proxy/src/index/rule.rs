//! One rule, compiled.

use std::sync::Arc;

use expression::{Account, ExpressionError, Expressions, Matcher};
use mesh::l7::{Expression, HttpRule};

use super::{HeaderMatcher, Rule};

/// What is wrong with a rule; without a part: no one rule is at fault.
pub(super) struct Fault {
    pub(super) part: Option<String>,
    pub(super) why: String,
}

/// Compiles a rule; what is in `store` is shared, and counts all the same.
pub(super) fn compiled(
    rule: &HttpRule,
    account: &mut Account,
    store: &mut Expressions,
) -> Result<Rule, Fault> {
    let mut part = |name: &str, text: &Option<Expression>| -> Result<Option<Arc<Matcher>>, Fault> {
        let Some(text) = text else { return Ok(None) };
        let matcher = account.matcher(&text.0, name == "host", store);
        matcher.map(Some).map_err(|error| fault(&error, &text.0, name))
    };
    let path = part("path", &rule.path)?;
    let method = part("method", &rule.method)?;
    let host = part("host", &rule.host)?;
    let mut headers = Vec::with_capacity(rule.headers.len());
    for (number, header) in rule.headers.iter().enumerate() {
        header.check().map_err(|fault| Fault {
            part: Some(format!("headers[{number}].{}", fault.part())),
            why: fault.to_string(),
        })?;
        let name = header.name.to_ascii_lowercase();
        let taken = account.header(&name, header.value.as_deref());
        taken.map_err(|error| fault(&error, &name, &format!("headers[{number}]")))?;
        let value = header.value.as_deref().map(Box::from);
        headers.push(HeaderMatcher { name: name.into(), value, mismatch: header.mismatch });
    }
    let names_connect = rule.method.as_ref().is_some_and(|method| names_connect(&method.0));
    Ok(Rule { path, method, names_connect, host, headers: headers.into() })
}

fn fault(error: &ExpressionError, text: &str, part: &str) -> Fault {
    match error {
        // No one of them is at fault.
        ExpressionError::Spent(budget) => {
            let (most, size) = (budget.expressions, budget.bytes >> 20);
            let why = format!(
                "all policies that select it have more than {most} expressions and headers together, or such that take more \
                 than {size} MiB when compiled"
            );
            Fault { part: None, why }
        }
        other => {
            let shown: String = text.chars().take(100).collect();
            Fault { part: Some(part.to_owned()), why: format!("{shown:?}: {other}") }
        }
    }
}

/// Whether an expression is the word CONNECT, or words of which it is one: what else matches it (`.*`, `[A-Z]+`) was hardly
/// meant to open a tunnel.
fn names_connect(expression: &str) -> bool {
    let inner = expression.strip_prefix('^').unwrap_or(expression);
    let inner = inner.strip_suffix('$').unwrap_or(inner);
    let group = inner.strip_prefix("(?:").or_else(|| inner.strip_prefix('('));
    let inner = group.and_then(|group| group.strip_suffix(')')).unwrap_or(inner);
    let mut words = inner.split('|');
    let is_word = |word: &str| word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    words.clone().all(is_word) && words.any(|word| word == "CONNECT")
}
