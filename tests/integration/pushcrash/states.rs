//! Sessions whose hash state is missing, damaged, newer than its data, or of an earlier boot.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::{age, hash_states, local, start};
use crate::support::client::Connection;
use crate::support::push::{assert_range, assert_tree_is_right, blob_path, received};
use crate::support::{KIB, MIB, noise, sha256};

/// What becomes of the bytes of a state.
type Change = fn(&[u8]) -> Vec<u8>;

/// Uploads three chunks, stops, lets `damage` at the session's directory, starts again, and finishes as well as it goes:
/// the blob is right or not there. The status of the first try to finish.
fn damaged(bytes: &[u8], kill: bool, damage: impl Fn(&Path)) -> u16 {
    let (mut spliceway, repository) = start();
    let session = repository.begin();
    for chunk in bytes.chunks(bytes.len() / 3 + 1) {
        session.patch(chunk).expect(202);
    }
    if kill {
        spliceway.kill9();
    } else {
        spliceway.stop();
    }
    damage(&session.directory(&local(&spliceway)));
    spliceway.restart(|_| ());
    let repository = repository.at(spliceway.addr());
    let mut session = session.at(repository.addr());
    let digest = sha256(bytes);
    let status = session.status();
    if status.status() != 204 {
        assert!(!status.error_code().is_empty(), "{status}");
    } else if received(&status) <= bytes.len() {
        session.follow(&status);
    }
    let mut answer = session.finish(&digest, &[]);
    let first = answer.status();
    if first != 201 && status.status() == 204 && received(&status) < bytes.len() {
        answer = session.resume(bytes);
    }
    if answer.status() == 201 {
        repository.blob(&digest).expect(200).expect_body(bytes);
    } else {
        assert!(!answer.error_code().is_empty(), "{answer}");
        repository.head_blob(&digest).expect(404);
        // Nothing keeps it from being pushed anew.
        repository.push(bytes);
        repository.blob(&digest).expect(200).expect_body(bytes);
    }
    assert_tree_is_right(&local(&spliceway));
    assert!(!spliceway.log().contains("panicked"));
    first
}

#[test]
fn states_that_are_missing_or_garbage_cost_a_second_hashing() {
    let bytes = noise(1, 3 * MIB + 17);
    let garbage: [Change; 7] = [
        |_| Vec::new(),
        |state| state[..107].to_vec(),
        |state| [state, b"x"].concat(),
        |_| vec![0; 108],
        |_| noise(5, 108),
        |state| [b"md5\x01", &state[4..]].concat(),
        // Of another length than its name says.
        |state| [&state[..100], &7_u64.to_be_bytes()].concat(),
    ];
    for change in garbage {
        let first = damaged(&bytes, true, |directory| {
            for (_, path) in hash_states(directory) {
                let state = fs::read(&path).expect("a state");
                fs::write(&path, change(&state)).expect("our own directory");
            }
        });
        assert_eq!(first, 201, "the data is whole: it is hashed again");
    }
    let missing = damaged(&bytes, true, |directory| {
        fs::remove_dir_all(directory.join("hashstates")).expect("states");
    });
    assert_eq!(missing, 201);
    let directories = damaged(&bytes, false, |directory| {
        for (_, path) in hash_states(directory) {
            fs::remove_file(&path).expect("a state");
            fs::create_dir(&path).expect("our own directory");
        }
    });
    assert_eq!(directories, 201);
}

#[test]
fn a_state_that_is_wrong_but_well_formed_publishes_nothing_wrong() {
    let bytes = noise(1, 3 * MIB + 17);
    for at in [4, 20, 35, 36, 50] {
        damaged(&bytes, true, |directory| {
            for (_, path) in hash_states(directory) {
                let mut state = fs::read(&path).expect("a state");
                state[at] ^= 1;
                fs::write(&path, state).expect("our own directory");
            }
        });
    }
}

#[test]
fn a_state_that_was_left_by_a_chunk_taken_back_is_not_believed() {
    // Long enough that states are written within a chunk.
    const LONG: usize = 70 * MIB;
    let (spliceway, repository) = start();
    let session = repository.begin();
    let directory = session.directory(&local(&spliceway));
    let (theirs, ours) = (noise(1, LONG), noise(2, LONG));
    // A chunk that is shorter than it says is taken back.
    let short = |first: usize, bytes: &[u8]| {
        let range = format!("{first}-{}", first + 2 * LONG);
        let request = session.request("PATCH").header("Content-Range", &range);
        session.send(&request.chunked(bytes, MIB)).expect(400);
        assert_range(&session.status().expect(204), first);
    };
    short(0, &theirs);
    let left: Vec<u64> = hash_states(&directory).into_iter().map(|(offset, _)| offset).collect();
    session.patch(&ours[..LONG / 2]).expect(202);
    session.patch(&ours[LONG / 2..]).expect(202);
    short(LONG, &noise(3, LONG));
    // The digest of the one's beginning and the other's end is nobody's.
    for offset in left.into_iter().filter(|&offset| offset > 0) {
        let offset = usize::try_from(offset).expect("small");
        let mixed = sha256(&[&theirs[..offset], &ours[offset..]].concat());
        session.finish(&mixed, &[]).expect_error(400, "DIGEST_INVALID");
        repository.head_blob(&mixed).expect(404);
    }
    session.finish(&sha256(&ours), &[]).expect(201);
    repository.blob(&sha256(&ours)).expect(200).expect_body(&ours);
    assert_tree_is_right(&local(&spliceway));
}

#[test]
fn a_state_that_is_newer_than_its_data_is_not_believed() {
    let bytes = noise(1, 3 * MIB + 17);
    for len in [0, 1, MIB, 2 * MIB, 3 * MIB + 16] {
        damaged(&bytes, true, |directory| {
            let data = OpenOptions::new().write(true).open(directory.join("data")).expect("the data");
            data.set_len(len as u64).expect("the data is cut");
        });
    }
    // Cut, and as long as before again.
    damaged(&bytes, true, |directory| {
        let data = OpenOptions::new().write(true).open(directory.join("data")).expect("the data");
        data.set_len(MIB as u64).and_then(|()| data.set_len(bytes.len() as u64)).expect("the data is cut");
        age(directory);
    });
    // Longer than any state says, and wrong there.
    damaged(&bytes, true, |directory| {
        let data = OpenOptions::new().write(true).open(directory.join("data")).expect("the data");
        data.write_all_at(&noise(9, 1000), bytes.len() as u64).expect("the data is written");
    });
}

#[test]
fn pages_lost_below_a_state_of_an_earlier_boot_are_noticed() {
    let bytes = noise(1, 3 * MIB + 17);
    for at in [0, MIB, 2 * MIB + 5] {
        let first = damaged(&bytes, true, |directory| {
            let data = OpenOptions::new().write(true).open(directory.join("data")).expect("the data");
            data.write_all_at(&vec![0; 64 * KIB], at as u64).expect("the data is written");
            age(directory);
        });
        assert_eq!(first, 400, "the data is hashed again, and is another");
    }
    // Nothing was lost: nothing is wrong.
    assert_eq!(damaged(&bytes, true, age), 201);
}

#[test]
fn a_data_file_that_was_replaced_is_hashed_again() {
    let bytes = noise(1, 3 * MIB + 17);
    damaged(&bytes, true, |directory| {
        let mut other = bytes.clone();
        other[MIB..2 * MIB].fill(0);
        fs::write(directory.join("restored"), other).expect("our own directory");
        fs::rename(directory.join("restored"), directory.join("data")).expect("our own directory");
        age(directory);
    });
}

#[test]
fn sessions_that_lack_a_part_are_no_trap() {
    let bytes = noise(1, MIB);
    for file in ["startedat", "data"] {
        damaged(&bytes, true, |directory| fs::remove_file(directory.join(file)).expect("it was there"));
        damaged(&bytes, true, |directory| {
            fs::remove_file(directory.join(file)).expect("it was there");
            fs::create_dir(directory.join(file)).expect("our own directory");
        });
    }
    damaged(&bytes, true, |directory| fs::write(directory.join("startedat"), b"yesterday").expect("ours"));
    damaged(&bytes, true, |directory| fs::remove_dir_all(directory).expect("it was there"));
}

#[test]
fn a_session_whose_data_is_a_blob_already_cannot_change_it() {
    // As a kill leaves it between the blob's publication and the session's end.
    for linked in [false, true] {
        let (mut spliceway, repository) = start();
        let bytes = noise(1, 3 * MIB + 17);
        let digest = sha256(&bytes);
        let session = repository.begin();
        session.patch(&bytes).expect(202);
        spliceway.kill9();
        let root = local(&spliceway);
        let blob = blob_path(&root, &digest);
        fs::create_dir_all(blob.parent().expect("a directory")).expect("our own directory");
        fs::hard_link(session.directory(&root).join("data"), &blob).expect("our own directory");
        spliceway.restart(|_| ());
        let repository = repository.at(spliceway.addr());
        let mut session = session.at(repository.addr());
        if linked {
            repository.push(&bytes);
        }
        // More, a chunk that breaks off, and one that is taken back.
        let more = session.patch(b"more").status();
        assert!(matches!(more, 202 | 404 | 416), "{more}");
        assert_eq!(sha256(&fs::read(&blob).expect("the blob")), digest, "the blob was written to");
        let mut connection = Connection::open(repository.addr());
        let request = session.request("PATCH").header("Content-Length", "100000");
        connection.write(&request.bytes(repository.addr())).expect("the head is written");
        connection.write(&noise(2, 70_000)).expect("a part is written");
        drop(connection);
        let range =
            session.request("PATCH").header("Content-Range", &format!("{}-{}", bytes.len(), bytes.len() + 9));
        session.send(&range.chunked(noise(3, 100_000), 1000));
        if session.status().status() == 204 {
            session = session.without_query();
            session.finish(&sha256(b"another"), &noise(4, 100));
        }
        assert_eq!(sha256(&fs::read(&blob).expect("the blob")), digest, "the blob was written to");
        repository.push(&bytes);
        repository.blob(&digest).expect(200).expect_body(&bytes);
        assert_tree_is_right(&root);
    }
}
