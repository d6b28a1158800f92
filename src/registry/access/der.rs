//! The little of DER (X.690) that a public key is wrapped in. Pure; never panics whatever the input.

/// Object identifiers, as their content: rsaEncryption, id-ecPublicKey, id-Ed25519.
pub(super) const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
pub(super) const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
pub(super) const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
/// Curves: prime256v1, secp384r1.
pub(super) const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
pub(super) const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OBJECT_IDENTIFIER: u8 = 0x06;
const SEQUENCE: u8 = 0x30;

/// A `SubjectPublicKeyInfo` (RFC 5280 section 4.1).
pub(super) struct PublicKeyInfo<'a> {
    pub(super) algorithm: &'a [u8],
    /// If they are an object identifier.
    pub(super) parameters: Option<&'a [u8]>,
    pub(super) key: &'a [u8],
}

/// Reads a whole `SubjectPublicKeyInfo`.
pub(super) fn public_key_info(mut der: &[u8]) -> Option<PublicKeyInfo<'_>> {
    let mut info = take(&mut der, SEQUENCE).filter(|_| der.is_empty())?;
    let mut identifier = take(&mut info, SEQUENCE)?;
    let algorithm = take(&mut identifier, OBJECT_IDENTIFIER)?;
    let parameters = take(&mut identifier, OBJECT_IDENTIFIER);
    let bits = take(&mut info, BIT_STRING)?;
    match bits.split_first()? {
        (0, key) if info.is_empty() => Some(PublicKeyInfo { algorithm, parameters, key }),
        _ => None,
    }
}

/// Modulus and exponent (RFC 8017 appendix A.1.1), without leading zeros.
pub(super) fn rsa_public_key(mut der: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut key = take(&mut der, SEQUENCE).filter(|_| der.is_empty())?;
    let (modulus, exponent) = (take(&mut key, INTEGER)?, take(&mut key, INTEGER)?);
    Some((unsigned(modulus), unsigned(exponent)))
}

/// A big-endian number without its leading zeros.
pub(super) fn unsigned(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|&&byte| byte == 0).count();
    &number[zeros..]
}

/// A sequence of this content.
pub(super) fn sequence(content: &[u8]) -> Vec<u8> {
    let mut der = vec![SEQUENCE];
    if let Ok(len) = u8::try_from(content.len())
        && len < 0x80
    {
        der.push(len);
    } else {
        let len = content.len().to_be_bytes();
        let len = unsigned(&len);
        // At most eight bytes of length.
        der.push(u8::try_from(len.len()).map_or(u8::MAX, |count| 0x80 | count));
        der.extend(len);
    }
    der.extend(content);
    der
}

/// Takes the content of an element of this type off the front.
fn take<'a>(der: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let (&found, rest) = der.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let len = match first {
        _ if found != tag => return None,
        0..=0x7f => usize::from(first),
        0x81..=0x83 => {
            let (len, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
            rest = after;
            len.iter().fold(0, |len, &byte| len << 8 | usize::from(byte))
        }
        _ => return None,
    };
    let (content, after) = rest.split_at_checked(len)?;
    *der = after;
    Some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_is_read_as_it_was_written() {
        for len in [0, 1, 127, 128, 255, 256, 70_000] {
            let content = vec![7; len];
            let der = sequence(&content);
            assert_eq!(take(&mut &der[..], SEQUENCE), Some(&content[..]), "{len}");
            for cut in 0..der.len().min(6) {
                assert_eq!(take(&mut &der[..cut], SEQUENCE), None, "{len} cut to {cut}");
            }
        }
        assert_eq!(take(&mut &[SEQUENCE, 0x80, 0, 0][..], SEQUENCE), None, "of indefinite length");
        assert_eq!(take(&mut &[SEQUENCE, 0x84, 0xff, 0xff, 0xff, 0xff][..], SEQUENCE), None);
    }
}
