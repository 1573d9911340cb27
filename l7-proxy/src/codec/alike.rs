//! Names of headers that somebody may take for one another.

/// Whether somebody may take one name for another: gateways to programs (CGI, WSGI, PHP) make one of `X-Role`, `X_Role` and,
/// some of them, `X.Role`.
pub(crate) fn is_look_alike(name: &[u8], judged: &[u8]) -> bool {
    let fold = |byte: &u8| if matches!(byte, b'-' | b'.') { b'_' } else { byte.to_ascii_lowercase() };
    name.len() == judged.len()
        && name.iter().map(fold).eq(judged.iter().map(fold))
        && !name.eq_ignore_ascii_case(judged)
}

#[cfg(test)]
mod tests {
    use super::is_look_alike;

    #[test]
    fn what_gateways_make_one_of_is_a_look_alike_and_the_name_itself_is_not() {
        for name in ["x_user_role", "X-User_Role", "x_user-role", "X.User.Role", "x-user.role"] {
            assert!(is_look_alike(name.as_bytes(), b"x-user-role"), "{name}");
        }
        for name in ["X-User-Role", "x-user-role", "x-user-roles", "xuserrole", "x-user"] {
            assert!(!is_look_alike(name.as_bytes(), b"x-user-role"), "{name}");
        }
        assert!(is_look_alike(b"X-Role", b"x_role"), "whichever is judged");
    }
}
