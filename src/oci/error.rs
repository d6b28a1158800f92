//! The error codes of the OCI distribution specification ("Error codes") and the body that carries them. Which HTTP
//! status goes with a code is decided where answers are made, not here.

use serde_json::{Value, json};

/// Why a registry refuses, as clients read it. The names on the wire ([`ErrorCode::as_str`]) are stable.
///
/// The codes beyond the specification's table (`TAG_INVALID`, `RANGE_INVALID`, `UNAVAILABLE`,
/// `PAGINATION_NUMBER_INVALID`, `UNKNOWN`) are those of CNCF distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// A blob that the request needs is not held and cannot be had.
    BlobUnknown,
    /// The upload session cannot go on or be finished.
    BlobUploadInvalid,
    /// There is no such upload session.
    BlobUploadUnknown,
    /// The request is understood and not allowed to this client.
    Denied,
    /// The digest is malformed, or is not that of the content.
    DigestInvalid,
    /// The manifest names content that the registry does not hold.
    ManifestBlobUnknown,
    /// The manifest is malformed or too large.
    ManifestInvalid,
    /// There is no such manifest in the repository.
    ManifestUnknown,
    /// The repository's name is malformed.
    NameInvalid,
    /// There is no such repository.
    NameUnknown,
    /// A page size that is not a number in range.
    PaginationNumberInvalid,
    /// A chunk or range that does not fit what is there.
    RangeInvalid,
    /// The length told is not the length received.
    SizeInvalid,
    /// The tag is malformed.
    TagInvalid,
    /// The client asks too often.
    TooManyRequests,
    /// The client must authenticate first.
    Unauthorized,
    /// The registry, or the upstream it needs, cannot answer at present.
    Unavailable,
    /// Something failed that has no code of its own.
    Unknown,
    /// The operation is not offered.
    Unsupported,
}

impl ErrorCode {
    /// The code on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            ErrorCode::BlobUnknown => "BLOB_UNKNOWN",
            ErrorCode::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            ErrorCode::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            ErrorCode::Denied => "DENIED",
            ErrorCode::DigestInvalid => "DIGEST_INVALID",
            ErrorCode::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            ErrorCode::ManifestInvalid => "MANIFEST_INVALID",
            ErrorCode::ManifestUnknown => "MANIFEST_UNKNOWN",
            ErrorCode::NameInvalid => "NAME_INVALID",
            ErrorCode::NameUnknown => "NAME_UNKNOWN",
            ErrorCode::PaginationNumberInvalid => "PAGINATION_NUMBER_INVALID",
            ErrorCode::RangeInvalid => "RANGE_INVALID",
            ErrorCode::SizeInvalid => "SIZE_INVALID",
            ErrorCode::TagInvalid => "TAG_INVALID",
            ErrorCode::TooManyRequests => "TOOMANYREQUESTS",
            ErrorCode::Unauthorized => "UNAUTHORIZED",
            ErrorCode::Unavailable => "UNAVAILABLE",
            ErrorCode::Unknown => "UNKNOWN",
            ErrorCode::Unsupported => "UNSUPPORTED",
        }
    }
}

/// The JSON body of an error answer (`application/json`): `{"errors":[{"code","message","detail"}]}`, one error, the
/// detail left out if there is none.
///
/// `message` and `detail` reach the client: nothing of upstream credentials or of this machine's paths belongs there.
pub fn error_body(code: ErrorCode, message: &str, detail: Option<Value>) -> Vec<u8> {
    let mut error = json!({ "code": code.as_str(), "message": message });
    if let Some(detail) = detail {
        error["detail"] = detail;
    }
    json!({ "errors": [error] }).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body() {
        let body = error_body(ErrorCode::NameUnknown, "no \"x\"\n", None);
        assert_eq!(
            String::from_utf8(body).unwrap(),
            r#"{"errors":[{"code":"NAME_UNKNOWN","message":"no \"x\"\n"}]}"#
        );
        let body = error_body(ErrorCode::TooManyRequests, "", Some(json!({"seconds": 3})));
        let read: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(read["errors"][0]["code"], "TOOMANYREQUESTS");
        assert_eq!(read["errors"][0]["detail"]["seconds"], 3);
    }
}
