//! Archives: of `docker save` (a tar with `manifest.json`, whose layers are uncompressed tars under
//! `<id>/layer.tar` or blobs under `blobs/`), and OCI layouts in a tar.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::expansion::{Expansion, Scratch};
use super::files::Files;
use super::layout;
use super::tar_index::TarIndex;
use crate::error::{Error, Remedy, Result};
use crate::format::{
    ConfigBlob, Digest, ImageReference, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, Platform,
    names_match, or_default,
};
use crate::image::{Documents, Resolved};
use crate::layer::{Compression, Layer, Location, Slice};
use crate::progress::Progress;
use crate::resolve;
use crate::sys;

/// An open archive with an index of its members.
pub(crate) struct Archive {
    /// Its path; [`STREAM`] for one that was streamed.
    path: PathBuf,
    place: String,
    file: Arc<File>,
    members: TarIndex,
}

/// The recorded path of an archive without a file.
const STREAM: &str = "-";

impl Archive {
    /// Opens an archive. A compressed one is expanded to an unnamed file, which is closed with the
    /// last layer of the image.
    pub(crate) fn open(path: &Path, scratch: &Scratch, progress: &dyn Progress) -> Result<Self> {
        let place = format!("docker-archive:{}", path.display());
        let mut file = sys::open_regular(path).map_err(Error::io("open", path))?;
        let mut magic = [0; Compression::MAGIC_LEN];
        let count = file.read_at(&mut magic, 0).map_err(Error::io("read", path))?;
        if Compression::of(magic.get(..count).unwrap_or_default()) != Compression::None {
            let total = Some(file.metadata().map_err(Error::io("read", path))?.len());
            file = Expansion { path, place: &place, total, scratch }.run(file, progress)?;
        }
        Self::scan(path, place, file)
    }

    /// Reads an archive from a stream, to its end, into an unnamed file; a compressed one is
    /// expanded, as in [`open`](Self::open).
    pub(crate) fn receive(
        input: &mut dyn Read,
        scratch: &Scratch,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let (path, place) = (Path::new(STREAM), "the archive that was sent".to_owned());
        let expansion = Expansion { path, place: &place, total: None, scratch };
        let file = expansion.run(input, progress)?;
        Self::scan(path, place, file)
    }

    fn scan(path: &Path, place: String, file: File) -> Result<Self> {
        let len = file.metadata().map_err(Error::io("read", path))?.len();
        let members = TarIndex::scan(&file, len).map_err(|error| Error::corrupt(&place, error))?;
        Ok(Self { path: path.to_owned(), place, file: Arc::new(file), members })
    }

    /// The name for images that have none in the archive: that of the file.
    pub(crate) fn stem(&self) -> Option<&str> {
        let is_file = self.path != Path::new(STREAM);
        self.path.file_stem().and_then(|stem| stem.to_str()).filter(|_| is_file)
    }

    /// The reference of the image with this tag.
    pub(crate) fn reference(&self, tag: String) -> ImageReference {
        ImageReference::DockerArchive { file: self.path.clone(), tag: Some(tag) }
    }

    /// Resolves the image with this tag.
    pub(crate) fn resolve(&self, tag: Option<&str>, host: &Platform) -> Result<Resolved> {
        // Every archive of `docker save` has a manifest.json, also if it is an OCI layout besides;
        // only there are the names that Docker's users know.
        match self.read("manifest.json", MAX_MANIFEST_BYTES)? {
            Some(json) => self.resolve_saved(&json, tag, host),
            None if self.members.find("oci-layout").is_some() => layout::resolve(self, tag, host),
            None => Err(self.no_image()),
        }
    }

    fn no_image(&self) -> Error {
        Error::Missing {
            what: format!("manifest.json in {}", self.place),
            remedy: Remedy::Other(
                "this is no archive of an image; `docker save IMAGE -o FILE` makes one",
            ),
        }
    }

    /// The tags that [`resolve`](Self::resolve) accepts, one for each name of each image; an image
    /// without a name is an error.
    pub(crate) fn tags(&self) -> Result<Vec<String>> {
        let (mut tags, nameless) = match self.read("manifest.json", MAX_MANIFEST_BYTES)? {
            Some(json) => {
                let what = format!("manifest.json in {}", self.place);
                let images: Vec<SavedImage> =
                    serde_json::from_slice(&json).map_err(|error| Error::corrupt(what, error))?;
                let nameless = images.iter().filter(|image| image.repo_tags.is_empty()).count();
                (images.into_iter().flat_map(|image| image.repo_tags).collect(), nameless)
            }
            None if self.members.find("oci-layout").is_some() => layout::tags(self)?,
            None => return Err(self.no_image()),
        };
        tags.sort();
        tags.dedup();
        if nameless == 0 && !tags.is_empty() {
            return Ok(tags);
        }
        Err(Error::Missing {
            what: format!("the name of an image in {}", self.place),
            remedy: Remedy::NameOnImport,
        })
    }

    fn resolve_saved(&self, json: &[u8], tag: Option<&str>, host: &Platform) -> Result<Resolved> {
        let what = format!("manifest.json in {}", self.place);
        let images: Vec<SavedImage> =
            serde_json::from_slice(json).map_err(|error| Error::corrupt(what, error))?;
        let image = self.pick(&images, tag)?;

        let config = self.read(&image.config, MAX_CONFIG_BYTES)?;
        let json = config.ok_or_else(|| self.member_missing("the config", &image.config))?;
        let what = format!("the config {} in {}", image.config, self.place);
        let digest = match named_digest(&image.config) {
            Some(digest) => resolve::verify(&what, &json, &digest).map(|()| digest)?,
            None => Digest::sha256(&json),
        };
        let ConfigBlob { config, diff_ids } =
            ConfigBlob::parse(&json).map_err(|error| Error::corrupt(&what, error))?;
        resolve::check_platform(&self.place, &config, host)?;
        resolve::check_layer_count(&what, image.layers.len(), diff_ids.len())?;
        let layers = image.layers.iter().zip(diff_ids).map(|(path, diff_id)| {
            let (location, len) =
                self.locate(path)?.ok_or_else(|| self.member_missing("the layer", path))?;
            let digest = Digest::from_blob_path(path);
            Ok(Layer { digest, size: Some(len), diff_id, location })
        });
        let documents = Documents { manifest: None, config: Some(json.into()) };
        Ok(Resolved { digest, config, layers: layers.collect::<Result<_>>()?, documents })
    }

    fn pick<'a>(&self, images: &'a [SavedImage], tag: Option<&str>) -> Result<&'a SavedImage> {
        let names = |images: &[&SavedImage]| -> Vec<String> {
            images.iter().flat_map(|image| image.names()).collect()
        };
        let all: Vec<_> = images.iter().collect();
        let chosen: Vec<_> = match tag {
            None => all.clone(),
            Some(tag) => all.iter().copied().filter(|image| image.is_tagged(tag)).collect(),
        };
        let place = self.place.clone();
        match (chosen.as_slice(), tag) {
            ([image], _) => Ok(image),
            ([], Some(tag)) => {
                Err(Error::NoSuchTag { place, tag: tag.to_owned(), tags: names(&all) })
            }
            ([], None) => Err(Error::Missing {
                what: format!("an image in {place}"),
                remedy: Remedy::Other("its manifest.json lists none; save the image again"),
            }),
            (several, _) => Err(Error::AmbiguousTag { place, tags: names(several) }),
        }
    }

    fn member_missing(&self, what: &str, path: &str) -> Error {
        let path: String = path.chars().take(200).collect();
        Error::Missing {
            what: format!("{what} {path:?} in {}", self.place),
            remedy: Remedy::Other("the archive is incomplete; save the image again"),
        }
    }
}

impl Files for Archive {
    fn label(&self) -> String {
        self.place.clone()
    }

    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some((start, len)) = self.members.find(path) else { return Ok(None) };
        if len > limit {
            let what = format!("{path} in {}", self.place);
            return Err(Error::TooLarge { what, limit });
        }
        let mut bytes = Vec::new();
        let mut slice = Slice { file: self.file.clone(), start, len };
        slice.read_to_end(&mut bytes).map_err(|error| Error::corrupt(&self.place, error))?;
        Ok(Some(bytes))
    }

    fn locate(&self, path: &str) -> Result<Option<(Location, u64)>> {
        Ok(self.members.find(path).map(|(start, len)| {
            (Location::Slice(Slice { file: self.file.clone(), start, len }), len)
        }))
    }
}

/// An entry of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default, deserialize_with = "or_default")]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    layers: Vec<String>,
}

impl SavedImage {
    fn names(&self) -> Vec<String> {
        match self.repo_tags.as_slice() {
            [] => vec![self.config.clone()],
            tags => tags.to_vec(),
        }
    }

    fn is_tagged(&self, tag: &str) -> bool {
        self.config == tag || self.repo_tags.iter().any(|name| names_match(name, tag))
    }
}

/// The digest in a config's name: `<hex>.json` or `blobs/sha256/<hex>`.
fn named_digest(path: &str) -> Option<Digest> {
    let old = || format!("sha256:{}", path.strip_suffix(".json")?).parse().ok();
    Digest::from_blob_path(path).or_else(old)
}

#[cfg(test)]
mod tests;
