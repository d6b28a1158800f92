use std::fs;
use std::future::Future;

use data_encoding::BASE64;
use futures_util::FutureExt;
use futures_util::future::join_all;
use http::StatusCode;
use http::header::{HOST, RETRY_AFTER, WWW_AUTHENTICATE};
use tempfile::NamedTempFile;
use tokio::task::LocalSet;

use super::throttle::PEER_PLACES;
use super::*;

/// Their passwords are `a` and the alphabet; from jBCrypt's test vectors.
const USERS: &str = "alice:$2y$06$m0CrhHm10qJ3lXRY.5zDGO3rS2KdeeWLuGmsfGlMfOxih58VYVfxe\n\
                     bob:$2y$06$.rCVZVOThsIa97pEDOxvGuRRgzG64bvtJ0938xuqzv18d3ZpQhstC\n";

fn peer() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 4711))
}

fn name(text: &str) -> RepositoryName {
    text.parse().expect("a valid name")
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, test)
}

fn grant(rights: Rights, repository: &str) -> Grant {
    Grant { rights, repositories: vec![repository.parse().expect("a pattern")] }
}

/// Users from a file, and what anybody may do; the file goes.
fn with_users(anonymous: Grant, rules: Vec<Rule>) -> Access {
    let file = NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), USERS).expect("our own file");
    let htpasswd = Some(file.path().to_owned());
    Access::new(AccessOptions { anonymous, htpasswd, rules, ..AccessOptions::open() }).expect("usable")
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64.encode(format!("{user}:{password}").as_bytes()))
}

fn headers(authorization: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static("r.example"))]);
    if let Some(text) = authorization {
        headers.insert(AUTHORIZATION, HeaderValue::from_str(text).expect("a value"));
    }
    headers
}

/// Status and challenge of the answer to one wish; 200 if it is permitted.
async fn ask(
    access: &Access,
    authorization: Option<&str>,
    action: Action,
    repository: &str,
) -> (u16, String) {
    let name = name(repository);
    let repository = (!matches!(action, Action::Ping | Action::Catalog)).then_some(&name);
    match access.permit(&headers(authorization), peer(), &[Wish { repository, action }]).await {
        Ok(()) => (200, String::new()),
        Err(error) => {
            let response = error.into_response();
            let challenge = response.headers().get(WWW_AUTHENTICATE);
            let challenge = challenge.map_or("", |value| value.to_str().expect("text")).to_owned();
            (response.status().as_u16(), challenge)
        }
    }
}

#[test]
fn what_anybody_may_do_is_decided_at_once() {
    let open = Access::new(AccessOptions::open()).expect("no file");
    let app = name("team/app");
    for action in [Action::Pull, Action::Push, Action::Delete, Action::Catalog, Action::Ping] {
        let wishes = [Wish { repository: Some(&app), action }];
        let headers = headers(None);
        let decision = open.permit(&headers, peer(), &wishes).now_or_never();
        assert!(matches!(decision, Some(Ok(()))), "{action:?}");
    }
    // Nobody can log in: credentials are for somebody else, and are ignored.
    let wishes = [Wish { repository: Some(&app), action: Action::Pull }];
    let headers = headers(Some("Basic nonsense"));
    assert!(matches!(open.permit(&headers, peer(), &wishes).now_or_never(), Some(Ok(()))));
}

#[test]
fn without_users_what_is_not_open_is_denied() {
    let options = AccessOptions { anonymous: grant(Rights::PULL, "public/**"), ..AccessOptions::open() };
    let access = Access::new(options).expect("no file");
    run(async {
        for (action, repository, status) in [
            (Action::Pull, "public/app", 200),
            (Action::Pull, "private/app", 403),
            (Action::Push, "public/app", 403),
            (Action::Delete, "public/app", 403),
            (Action::Catalog, "", 403),
            (Action::Ping, "", 200),
        ] {
            let repository = if repository.is_empty() { "x" } else { repository };
            let (answered, challenge) = ask(&access, None, action, repository).await;
            assert_eq!((answered, &*challenge), (status, ""), "{action:?} {repository}");
        }
    });
}

#[test]
fn users_do_what_the_rules_say_and_what_anybody_may() {
    let rules = vec![
        Rule {
            users: vec!["alice".into()],
            grant: grant(Rights { delete: false, ..Rights::ALL }, "team/**"),
        },
        Rule { users: vec!["*".into()], grant: grant(Rights::PULL, "internal/*") },
    ];
    let access = with_users(grant(Rights::PULL, "public/**"), rules);
    let (alice, bob) = (basic("alice", "a"), basic("bob", "abcdefghijklmnopqrstuvwxyz"));
    run(async {
        for (who, action, repository, status) in [
            (None, Action::Pull, "public/app", 200),
            (None, Action::Pull, "internal/app", 401),
            (None, Action::Push, "public/app", 401),
            (None, Action::Ping, "x", 401),
            (Some(&alice), Action::Ping, "x", 200),
            (Some(&alice), Action::Push, "team/app", 200),
            (Some(&alice), Action::Pull, "internal/app", 200),
            (Some(&alice), Action::Pull, "public/app", 200),
            (Some(&alice), Action::Delete, "team/app", 403),
            (Some(&alice), Action::Push, "public/app", 403),
            (Some(&alice), Action::Catalog, "x", 403),
            (Some(&bob), Action::Pull, "internal/app", 200),
            (Some(&bob), Action::Pull, "team/app", 403),
        ] {
            let (answered, challenge) = ask(&access, who.map(String::as_str), action, repository).await;
            assert_eq!(answered, status, "{who:?} {action:?} {repository}");
            assert_eq!(challenge.is_empty(), status != 401, "{challenge}");
        }
        let app = name("team/app");
        let from = name("secret/app");
        let wish = |repository, action| Wish { repository: Some(repository), action };
        let mount = [wish(&app, Action::Push), wish(&from, Action::Pull)];
        let refused = access.permit(&headers(Some(&alice)), peer(), &mount).await.expect_err("one of two");
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        assert!(refused.message().contains("secret/app"), "{}", refused.message());
    });
}

#[test]
fn the_challenge_is_one_that_clients_without_a_login_can_answer() {
    run(async {
        // Nothing without a login: as distribution.
        let closed = with_users(Grant::everywhere(Rights::NONE), Vec::new());
        for (who, action) in [(None, Action::Ping), (None, Action::Push), (Some("Basic Og=="), Action::Pull)]
        {
            let (status, challenge) = ask(&closed, who, action, "a/b").await;
            assert_eq!((status, &*challenge), (401, "Basic realm=\"spliceway\""), "{who:?} {action:?}");
        }
        // Something: the place where nobody gets a token, too.
        let reading = with_users(Grant::everywhere(Rights::PULL), Vec::new());
        let bearer = "Bearer realm=\"http://r.example/v2/token\",service=\"spliceway\"";
        assert_eq!(ask(&reading, None, Action::Ping, "x").await, (401, bearer.into()));
        let push = format!("{bearer},scope=\"repository:a/b:pull,push\"");
        for nobody in [None, Some("Basic Og=="), Some("Bearer anonymous")] {
            let told = nobody.map_or("", |_| ",error=\"insufficient_scope\"");
            assert_eq!(ask(&reading, nobody, Action::Push, "a/b").await, (401, format!("{push}{told}")));
            assert_eq!(ask(&reading, nobody, Action::Pull, "a/b").await.0, 200);
        }
        assert_eq!(ask(&reading, Some("Bearer anonymous"), Action::Ping, "x").await.0, 200);
        // Everything: there is nothing to log in for.
        let open = with_users(Grant::everywhere(Rights::ALL), Vec::new());
        assert_eq!(ask(&open, None, Action::Ping, "x").await.0, 200);
    });
}

#[test]
fn a_token_of_ours_is_the_login() {
    let access = with_users(Grant::everywhere(Rights::PULL), Vec::new());
    run(async {
        let ask_token = async |authorization: Option<&str>| {
            let request = http::Request::get(TOKEN_PATH).body(()).expect("a request");
            let (mut head, ()) = request.into_parts();
            head.headers = headers(authorization);
            access.token(&head, peer()).await.expect("tokens are given out")
        };
        let token = |response: Response<Body>| {
            let Some(crate::body::Constant::Bytes(bytes)) = response.body().constant() else {
                panic!("no bytes")
            };
            let answer: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
            format!("Bearer {}", answer["token"].as_str().expect("a token"))
        };
        let alice = token(ask_token(Some(&basic("alice", "a"))).await.expect("a token"));
        assert_eq!(ask(&access, Some(&alice), Action::Push, "a/b").await.0, 200);
        assert_eq!(token(ask_token(None).await.expect("a token")), "Bearer anonymous");
        for wrong in [&basic("alice", "b"), "Bearer x.y.z"] {
            let refused = ask_token(Some(wrong)).await.expect_err("no token").into_response();
            assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "{wrong}");
            assert_eq!(refused.headers()[WWW_AUTHENTICATE], "Basic realm=\"spliceway\"");
        }
        let closed = Access::new(AccessOptions::open()).expect("no file");
        let (head, ()) = http::Request::get(TOKEN_PATH).body(()).expect("a request").into_parts();
        assert!(closed.token(&head, peer()).await.is_none(), "there is nobody to give one to");
    });
}

#[test]
fn wrong_credentials_are_refused_even_where_none_are_needed() {
    let access = with_users(Grant::everywhere(Rights::PULL), Vec::new());
    run(async {
        let wrong =
            [&basic("alice", "b"), &basic("carol", "a"), "Bearer a.b.c", "Bearer login-!", "Digest x"];
        let answers = wrong.map(|who| ask(&access, Some(who), Action::Ping, "x"));
        for (who, (status, challenge)) in wrong.iter().zip(join_all(answers).await) {
            assert_eq!(status, 401, "{who}");
            assert!(challenge.ends_with(",error=\"invalid_token\""), "{challenge}");
        }
    });
}

#[test]
fn guessers_are_turned_away_and_those_who_are_known_are_not() {
    let access = with_users(Grant::everywhere(Rights::NONE), Vec::new());
    run(async {
        let alice = basic("alice", "a");
        assert_eq!(ask(&access, Some(&alice), Action::Ping, "x").await.0, 200);
        let guesses: Vec<_> = (0..PEER_PLACES + 8).map(|guess| basic("alice", &guess.to_string())).collect();
        let guessing = join_all(guesses.iter().map(|guess| ask(&access, Some(guess), Action::Ping, "x")));
        let knowing = ask(&access, Some(&alice), Action::Ping, "x");
        let (answers, known) = futures_util::future::join(guessing, knowing).await;
        let count = |status| answers.iter().filter(|(answered, _)| *answered == status).count();
        assert_eq!((count(401), count(429)), (PEER_PLACES, 8), "{answers:?}");
        assert_eq!(known.0, 200);
        let refused = too_many().into_response();
        assert_eq!(refused.headers()[RETRY_AFTER], "1");
    });
}

#[test]
fn many_who_send_one_login_take_one_place() {
    let access = with_users(Grant::everywhere(Rights::NONE), Vec::new());
    run(async {
        let alice = basic("alice", "a");
        let asked = (0..PEER_PLACES * 2).map(|_| ask(&access, Some(&alice), Action::Ping, "x"));
        assert!(join_all(asked).await.iter().all(|(status, _)| *status == 200));
    });
}
