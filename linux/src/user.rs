//! Users and groups of this machine, by name or number.

use std::ffi::CString;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist, setgroups, setresgid, setresuid};

use crate::error::{Context, Error, Result};

/// Who a process runs as.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Credentials {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

impl Credentials {
    /// Reads `user` or `user:group`, each a name or a number. A user that is known here has its group and further
    /// groups unless a group is given; for a number that is not, the group has the same number.
    pub fn parse(text: &str) -> Result<Self> {
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let group = group.map(gid).transpose()?;
        let known = match user.parse() {
            Ok(number) => User::from_uid(Uid::from_raw(number)),
            Err(_) => User::from_name(user),
        };
        let known = known.context("look up user", user)?;
        let (uid, own) = match (&known, user.parse()) {
            (Some(known), _) => (known.uid, known.gid),
            (None, Ok(number)) => (Uid::from_raw(number), Gid::from_raw(number)),
            (None, Err(_)) => return Err(unknown("user", user)),
        };
        let gid = group.unwrap_or(own);
        let groups = match &known {
            Some(known) if group.is_none() => {
                let name = CString::new(known.name.as_str()).context("read user", user)?;
                getgrouplist(&name, gid).context("look up groups of user", user)?
            }
            _ => vec![gid],
        };
        Ok(Self { uid, gid, groups })
    }

    /// The ones root has.
    pub fn root() -> Self {
        Self { uid: Uid::from_raw(0), gid: Gid::from_raw(0), groups: vec![Gid::from_raw(0)] }
    }

    /// Whether it is user 0.
    pub fn is_root(&self) -> bool {
        self.uid.is_root()
    }

    /// Makes the calling process this user, for good.
    pub fn assume(&self) -> Result<()> {
        setgroups(&self.groups).context("set groups of user", self.uid)?;
        setresgid(self.gid, self.gid, self.gid).context("become group", self.gid)?;
        setresuid(self.uid, self.uid, self.uid).context("become user", self.uid)
    }
}

fn gid(group: &str) -> Result<Gid> {
    if let Ok(number) = group.parse() {
        return Ok(Gid::from_raw(number));
    }
    let known = Group::from_name(group).context("look up group", group)?;
    known.map(|group| group.gid).ok_or_else(|| unknown("group", group))
}

fn unknown(kind: &str, name: &str) -> Error {
    Error::Unexpected {
        object: format!("{kind} {name}"),
        found: "no such name on this machine".to_owned(),
        expected: "a name or a number, user[:group]",
    }
}

/// Numbers of a user of the host and of its group; none if there is no such user.
pub fn user(name: &str) -> Result<Option<(u32, u32)>> {
    let known = User::from_name(name).context("look up user", name)?;
    Ok(known.map(|user| (user.uid.as_raw(), user.gid.as_raw())))
}

/// Number of a group of the host; none if there is no such group.
pub fn group(name: &str) -> Result<Option<u32>> {
    let known = Group::from_name(name).context("look up group", name)?;
    Ok(known.map(|group| group.gid.as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_read() {
        let root = Credentials { uid: 0.into(), gid: 0.into(), groups: vec![0.into()] };
        for text in ["root", "0", "0:0", "root:root"] {
            assert_eq!(Credentials::parse(text).unwrap(), root, "{text}");
        }
        let numbers = Credentials { uid: 54321.into(), gid: 54321.into(), groups: vec![54321.into()] };
        assert_eq!(Credentials::parse("54321").unwrap(), numbers);
        let both = Credentials { uid: 54321.into(), gid: 7.into(), groups: vec![7.into()] };
        assert_eq!(Credentials::parse("54321:7").unwrap(), both);
    }

    #[test]
    fn a_user_is_found_by_name() {
        assert_eq!(user("root").unwrap(), Some((0, 0)));
        assert_eq!(user("nobody-such").unwrap(), None);
    }

    #[test]
    fn an_unknown_name_says_what_is_accepted() {
        let error = Credentials::parse("nobody-such").unwrap_err().to_string();
        assert!(error.starts_with("user nobody-such: found no such name") && error.contains("user[:group]"));
        assert!(Credentials::parse("root:none-such").is_err());
    }
}
