//! The scopes of tokens, `repository:team/app:pull,push` and several of them with spaces between (distribution's token
//! specification, "Resource Scopes"). Pure.
//!
//! Who pushes asks for one token that does for all of a repository: a registry challenges each request for no more than
//! that request needs, and following it would fetch tokens in turns.

/// Resources that one token is asked for, at most: a mount adds the repository that it takes from.
const RESOURCES_MAX: usize = 16;
/// What is asked for the repository that is pushed to.
const PUSHING: [&str; 2] = ["pull", "push"];

/// The scope to ask for: all that `asked` has, what was asked `before`, and pushing to `repository` if `asked` names it.
pub(super) fn for_pushing(asked: &str, before: Option<&str>, repository: &str) -> String {
    let mut resources: Vec<Resource<'_>> = Vec::new();
    let all = asked.split_ascii_whitespace().chain(before.into_iter().flat_map(str::split_ascii_whitespace));
    for resource in all.filter_map(Resource::parse) {
        match resources.iter().position(|known| known.kind == resource.kind && known.name == resource.name) {
            Some(known) => resources[known].add(resource.actions),
            None if resources.len() < RESOURCES_MAX => resources.push(resource),
            None => {}
        }
    }
    for resource in &mut resources {
        if resource.kind == "repository" && resource.name == repository {
            let had = std::mem::take(&mut resource.actions);
            resource.add(PUSHING.into());
            resource.add(had);
        }
    }
    let shown: Vec<_> = resources.iter().map(Resource::shown).collect();
    if shown.is_empty() { asked.to_owned() } else { shown.join(" ") }
}

/// Whether `known` has all that `asked` has.
pub(super) fn covers(known: &str, asked: &str) -> bool {
    let known: Vec<_> = known.split_ascii_whitespace().filter_map(Resource::parse).collect();
    asked.split_ascii_whitespace().filter_map(Resource::parse).all(|asked| {
        known.iter().any(|known| {
            known.kind == asked.kind
                && known.name == asked.name
                && asked.actions.iter().all(|action| known.actions.contains(action))
        })
    })
}

struct Resource<'a> {
    kind: &'a str,
    name: &'a str,
    actions: Vec<&'a str>,
}

impl<'a> Resource<'a> {
    /// A name may hold colons: a registry's host with a port in front.
    fn parse(text: &'a str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        let (name, actions) = rest.rsplit_once(':')?;
        let mut resource = Self { kind, name, actions: Vec::new() };
        resource.add(actions.split(',').filter(|action| !action.is_empty()).collect());
        Some(resource)
    }

    fn add(&mut self, actions: Vec<&'a str>) {
        for action in actions {
            if !self.actions.contains(&action) {
                self.actions.push(action);
            }
        }
    }

    fn shown(&self) -> String {
        format!("{}:{}:{}", self.kind, self.name, self.actions.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_token_for_all_of_a_repository() {
        let scope = |asked, before| for_pushing(asked, before, "a/b");
        assert_eq!(scope("repository:a/b:pull", None), "repository:a/b:pull,push");
        assert_eq!(scope("repository:a/b:delete", None), "repository:a/b:pull,push,delete");
        let before = Some("repository:a/b:pull,push,delete");
        assert_eq!(scope("repository:a/b:pull", before), "repository:a/b:pull,push,delete");
        let mount = "repository:a/b:pull,push repository:c:pull";
        assert_eq!(scope(mount, None), mount);
        assert_eq!(scope("repository:a/b:pull", Some(mount)), mount);
        assert_eq!(scope("registry:catalog:*", None), "registry:catalog:*");
        assert_eq!(scope("repository:h:5000/x:pull", None), "repository:h:5000/x:pull");
        assert_eq!(scope("", None), "");
        assert_eq!(scope("odd", None), "odd");
    }

    #[test]
    fn what_a_token_covers() {
        let known = "repository:a:pull,push,delete repository:b:pull";
        for asked in ["", "repository:a:delete", "repository:b:pull repository:a:push,pull"] {
            assert!(covers(known, asked), "{asked}");
        }
        for asked in ["repository:c:pull", "repository:b:push", "registry:catalog:*"] {
            assert!(!covers(known, asked), "{asked}");
        }
    }

    #[test]
    fn mounts_from_many_repositories_stay_bounded() {
        let mut before = None;
        for n in 0..100 {
            let asked = format!("repository:a/b:pull,push repository:r{n}:pull");
            let scope = for_pushing(&asked, before.as_deref(), "a/b");
            assert!(scope.starts_with(&asked), "{scope}");
            assert!(scope.split(' ').count() <= RESOURCES_MAX);
            before = Some(scope);
        }
    }
}
