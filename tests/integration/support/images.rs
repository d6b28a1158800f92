//! Images made from nothing: OCI layouts on disk for skopeo, and their parts for the origin in memory.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::origin::Origin;
use super::{noise, sha256};

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// One platform's image.
pub(crate) struct Image {
    /// Config first, then the layers.
    pub(crate) blobs: Vec<Vec<u8>>,
    pub(crate) manifest: Vec<u8>,
    pub(crate) architecture: String,
}

impl Image {
    /// An image whose layers hold one random file each, of about these sizes.
    pub(crate) fn new(seed: u64, architecture: &str, layer_sizes: &[usize]) -> Self {
        let tars: Vec<Vec<u8>> = (seed..).zip(layer_sizes).map(|(seed, &size)| tar(seed, size)).collect();
        let layers: Vec<Vec<u8>> = tars.iter().map(|tar| gzip(tar)).collect();
        let diff_ids: Vec<String> = tars.iter().map(|tar| sha256(tar)).collect();
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": ["/bin/none"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": diff_ids.iter().map(|_| json!({"created_by": "a test"})).collect::<Vec<_>>(),
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, &config),
            "layers": layers.iter().map(|layer| descriptor(OCI_LAYER, layer)).collect::<Vec<_>>(),
        });
        let mut blobs = vec![config];
        blobs.extend(layers);
        Self { blobs, manifest: manifest.to_string().into_bytes(), architecture: architecture.into() }
    }

    pub(crate) fn digest(&self) -> String {
        sha256(&self.manifest)
    }

    /// The image's bytes of layer `index`.
    pub(crate) fn layer(&self, index: usize) -> &[u8] {
        &self.blobs[index + 1]
    }

    /// Puts everything into `origin`, tagged; the manifest's digest.
    pub(crate) fn hold(&self, origin: &Origin, repository: &str, tag: &str) -> String {
        for blob in &self.blobs {
            origin.blob(blob.clone());
        }
        let digest = origin.manifest(OCI_MANIFEST, &self.manifest);
        origin.tag(repository, tag, &digest);
        digest
    }
}

/// The index that names `images`.
pub(crate) fn index(images: &[Image]) -> Vec<u8> {
    let manifests: Vec<Value> = images
        .iter()
        .map(|image| {
            let mut entry = descriptor(OCI_MANIFEST, &image.manifest);
            entry["platform"] = json!({"os": "linux", "architecture": image.architecture});
            entry
        })
        .collect();
    json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}).to_string().into_bytes()
}

/// A Docker manifest list with one schema 2 manifest for each architecture, held by `origin` and tagged. The list,
/// and the manifests in the order of `architectures`.
pub(crate) fn docker_list(
    origin: &Origin,
    repository: &str,
    tag: &str,
    architectures: &[&str],
) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut entries = Vec::new();
    let mut manifests = Vec::new();
    for architecture in architectures {
        let config = json!({"architecture": architecture, "os": "linux"}).to_string().into_bytes();
        origin.blob(config.clone());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": descriptor("application/vnd.docker.container.image.v1+json", &config),
            "layers": [],
        });
        let manifest = manifest.to_string().into_bytes();
        origin.manifest(DOCKER_MANIFEST, &manifest);
        let mut entry = descriptor(DOCKER_MANIFEST, &manifest);
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entries.push(entry);
        manifests.push(manifest);
    }
    let list =
        json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": entries}).to_string().into_bytes();
    origin.tag(repository, tag, &origin.manifest(DOCKER_LIST, &list));
    (list, manifests)
}

/// Writes an OCI layout with one image, or with an index of several.
pub(crate) fn write_layout(at: &Path, images: &[Image]) {
    let blobs = at.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("our own directory");
    let put = |bytes: &[u8]| {
        fs::write(blobs.join(super::hex(&sha256(bytes))), bytes).expect("our own directory");
    };
    for image in images {
        image.blobs.iter().for_each(|blob| put(blob));
        put(&image.manifest);
    }
    let top = if let [image] = images {
        descriptor(OCI_MANIFEST, &image.manifest)
    } else {
        let index = index(images);
        put(&index);
        descriptor(OCI_INDEX, &index)
    };
    let layout = json!({"schemaVersion": 2, "manifests": [top]}).to_string();
    fs::write(at.join("index.json"), layout).expect("our own directory");
    fs::write(at.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("our own directory");
}

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": sha256(bytes), "size": bytes.len()})
}

/// A tar archive with one file of random content.
fn tar(seed: u64, size: usize) -> Vec<u8> {
    let mut header = [0; 512];
    header[..16].copy_from_slice(format!("file-{seed:011}").as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].fill(b' ');
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut archive = header.to_vec();
    archive.extend(noise(seed, size));
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    archive
}

/// Gzip without compression (RFC 1951 §3.2.4, RFC 1952): the content is random anyway.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let mut blocks = bytes.chunks(0xffff).peekable();
    while let Some(block) = blocks.next() {
        let len = u16::try_from(block.len()).expect("at most 0xffff");
        out.push(u8::from(blocks.peek().is_none()));
        out.extend(len.to_le_bytes());
        out.extend((!len).to_le_bytes());
        out.extend(block);
    }
    out.extend(crc32(bytes).to_le_bytes());
    out.extend(u32::try_from(bytes.len()).expect("small").to_le_bytes());
    out
}

fn crc32(bytes: &[u8]) -> u32 {
    let table: [u32; 256] = std::array::from_fn(|index| {
        let seed = u32::try_from(index).expect("a byte");
        (0..8).fold(seed, |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 })
    });
    !bytes.iter().fold(!0, |crc: u32, byte| (crc >> 8) ^ table[usize::from(crc.to_le_bytes()[0] ^ byte)])
}
