//! Docker's signed schema 1 manifests, whose digest is not that of their bytes (image specification of Docker, version 2
//! schema 1, "Signed Manifests"). Legacy: stored and served as they come.

/// What a signed schema 1 manifest's signatures cover, and its digest names: its first `formatLength` bytes and
/// `formatTail`, both told in each signature's `protected` header (image spec of Docker, schema 1, "Signed Manifests").
/// `None` if it has no such header; then its digest is that of all its bytes.
pub fn payload(bytes: &[u8]) -> Option<Vec<u8>> {
    #[derive(serde::Deserialize)]
    struct Signed {
        signatures: Vec<Signature>,
    }
    #[derive(serde::Deserialize)]
    struct Signature {
        protected: String,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Protected {
        format_length: usize,
        format_tail: String,
    }
    let decode =
        |text: &str| data_encoding::BASE64URL_NOPAD.decode(text.trim_end_matches('=').as_bytes()).ok();
    let signed: Signed = serde_json::from_slice(bytes).ok()?;
    let protected: Protected =
        serde_json::from_slice(&decode(&signed.signatures.first()?.protected)?).ok()?;
    let mut payload = bytes.get(..protected.format_length)?.to_vec();
    payload.extend(decode(&protected.format_tail)?);
    Some(payload)
}
