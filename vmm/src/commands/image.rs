//! `boxlite-vmm image`: pull, import, load, list, inspect, remove.

// The doc comments are help texts, where brackets mark optional parts.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use boxlite_runtime::ImageReference;
use boxlite_runtime::{ImageDetails, ImageInfo, ImagePlatform, Images, PullPolicy};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tokio::net::unix::pipe;

use crate::commands::lifecycle::confirmed;
use crate::exit::{FAILED, report};
use crate::global::Global;
use crate::human;
use crate::out::{self, Format};
use crate::progress::ImageBar;
use crate::table::{Table, plain};

#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Pull images from their registries
    Pull(Pull),
    /// List the images in the home
    #[command(visible_alias = "list")]
    Ls(List),
    /// Remove images from the home
    #[command(visible_alias = "remove")]
    Rm(Remove),
    /// Show everything about images, as JSON
    Inspect(Named),
    /// Copy an image into the home under a name, and build its disk
    Import(Import),
    /// Import all images, under their own names, from a file written by `image save` or `docker save`, or an OCI archive
    Load(Load),
    /// Write images to a tar of an OCI layout
    Save(Save),
    /// Remove interrupted pulls, and cached disks of images that were never imported
    Prune(Prune),
}

#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// Show no progress bars; print names only
    #[arg(long, short)]
    quiet: bool,
    /// Platform, OS/ARCHITECTURE[/VARIANT] [default: that of the machine that runs boxes]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<ImagePlatform>,
    /// Names (alpine:3.20, ghcr.io/owner/app, quay.io/app@sha256:…)
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Print digests only
    #[arg(long, short)]
    quiet: bool,
    /// Do not shorten digests
    #[arg(long)]
    no_trunc: bool,
    /// Output format: for people or for programs
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Also remove images that boxes were created from; the boxes are not affected
    #[arg(long, short)]
    force: bool,
    #[command(flatten)]
    named: Named,
}

#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Names, references or digests, as `image ls` shows them
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Show no progress bars
    #[arg(long, short)]
    quiet: bool,
    /// The image: oci:DIR[:tag], docker-archive:FILE or rootfs:DIR
    source: String,
    /// Name in the home [default: the name of the folder or file]
    name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Load {
    /// Input file, compressed or not [default: standard input]
    #[arg(long, short, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Show no progress bars
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Save {
    /// Output file, which appears when it is complete [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    named: Named,
}

#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// Also remove every image that no box was created from
    #[arg(long, short)]
    all: bool,
    /// Do not ask for confirmation
    #[arg(long, short)]
    force: bool,
}

pub(crate) async fn image(global: &Global, command: Image) -> Result<u8> {
    if let Image::Prune(Prune { all: true, force: false }) = command
        && !confirmed("This removes all images that no box was created from.")?
    {
        return Ok(0);
    }
    let images = global.runtime().await?.images();
    match command {
        Image::Pull(args) => pull(&images, &args).await,
        Image::Ls(args) => list(&images, &args).await,
        Image::Rm(args) => remove(&images, &args).await,
        Image::Inspect(args) => inspect(&images, &args).await,
        Image::Import(args) => import(&images, args).await,
        Image::Load(args) => load(&images, &args).await,
        Image::Save(args) => save(&images, &args).await,
        Image::Prune(args) => {
            let removed = images.prune(args.all).await?;
            for name in &removed.names {
                out::line(format_args!("removed {name}"))?;
            }
            out::line(format_args!("freed {}", human::bytes(removed.freed)))?;
            Ok(0)
        }
    }
}

async fn pull(images: &Images, args: &Pull) -> Result<u8> {
    let mut code = 0;
    for name in &args.images {
        let (platform, bar) = (args.platform.clone(), ImageBar::new(args.quiet));
        match images.get_for(name, platform, PullPolicy::Always, bar).await {
            Ok(image) if args.quiet => out::line(image.name)?,
            Ok(image) => out::line(format_args!("{} {}", image.name, image.digest))?,
            Err(error) => {
                report(&error.into());
                code = FAILED;
            }
        }
    }
    Ok(code)
}

async fn import(images: &Images, args: Import) -> Result<u8> {
    let source: ImageReference = args.source.parse()?;
    let name = match args.name.or_else(|| default_name(&source)) {
        Some(name) => name,
        None => bail!("the image needs a name: give one after {source}"),
    };
    let image = images.import(source.to_string(), name, ImageBar::new(args.quiet)).await?;
    out::line(format_args!("{} {}", image.name, image.digest))?;
    Ok(0)
}

/// The name of the folder or file, with the tag.
fn default_name(source: &ImageReference) -> Option<String> {
    let stem = |path: &Path| path.file_stem()?.to_str().map(str::to_lowercase);
    let tagged = |name: String, tag: &Option<String>| match tag {
        // A docker archive's tag may be a whole name.
        Some(tag) if tag.contains(':') => tag.clone(),
        Some(tag) => format!("{name}:{tag}"),
        None => name,
    };
    match source {
        ImageReference::OciLayout { dir, tag } => Some(tagged(stem(dir)?, tag)),
        ImageReference::DockerArchive { file, tag } => Some(tagged(stem(file)?, tag)),
        ImageReference::Directory { dir } => stem(dir),
        ImageReference::Name(name) => Some(name.to_string()),
    }
}

async fn load(images: &Images, args: &Load) -> Result<u8> {
    let bar = ImageBar::new(args.quiet);
    let is_stdin = |path: &PathBuf| *path == Path::new("-") || *path == Path::new("/dev/stdin");
    let loaded = match args.input.as_ref().filter(|path| !is_stdin(path)) {
        Some(path) if is_file(path)? => images.load(path, bar).await?,
        Some(path) => images.load_from(open_pipe(path.clone()).await?, bar).await?,
        None if io::stdin().is_terminal() => {
            bail!("cannot load an image from a terminal: redirect standard input, or use --input")
        }
        None => images.load_from(tokio::io::stdin(), bar).await?,
    };
    for image in loaded {
        out::line(format_args!("{} {}", image.name, image.digest))?;
    }
    Ok(0)
}

/// Whether the runtime, which may run in another process, can open this path: not if it is a pipe of this process.
fn is_file(path: &Path) -> Result<bool> {
    let metadata = path.metadata().with_context(|| format!("cannot read {}", path.display()))?;
    Ok(metadata.is_file())
}

/// Opens a pipe, which blocks until a writer opens it.
async fn open_pipe(path: PathBuf) -> Result<pipe::Receiver> {
    let cannot = format!("cannot read {}", path.display());
    let opened = tokio::task::spawn_blocking(move || File::open(path)).await?;
    opened.and_then(pipe::Receiver::from_file).context(cannot)
}

async fn list(images: &Images, args: &List) -> Result<u8> {
    let found = images.list().await?;
    if args.quiet {
        let digests = found.iter().map(|image| digest(image, args.no_trunc) + "\n");
        out::print(digests.collect::<String>())?;
        return Ok(0);
    }
    if args.format == Format::Json {
        for image in &found {
            out::json_line(&as_json(image)?)?;
        }
        return Ok(0);
    }
    let mut table = Table::new(["NAME", "DIGEST", "SIZE", "CREATED"]);
    for image in &found {
        table.row([
            plain(&image.name).into_owned(),
            digest(image, args.no_trunc),
            human::bytes(image.size),
            human::ago(image.time),
        ]);
    }
    out::print(table.text())?;
    for image in &found {
        if let Some(problem) = &image.problem {
            let name = plain(&image.name);
            out::note(format_args!(
                "boxlite-vmm: {name}: {problem}; its disk is rebuilt on next use"
            ));
        }
    }
    Ok(0)
}

/// A digest in a table: twelve digits, or the whole with its algorithm.
fn digest(image: &ImageInfo, whole: bool) -> String {
    match image.digest.split_once(':') {
        Some((_, hex)) if !whole => human::id(hex, false),
        _ => image.digest.clone(),
    }
}

fn details_as_json(details: &ImageDetails) -> Result<Value> {
    let mut value = serde_json::to_value(details)?;
    if let Some(object) = value.as_object_mut() {
        object.insert("time".into(), json!(human::rfc3339(details.image.time, 3)));
    }
    Ok(value)
}

fn as_json(image: &ImageInfo) -> Result<Value> {
    let mut value = serde_json::to_value(image)?;
    if let Some(object) = value.as_object_mut() {
        object.insert("time".into(), json!(human::rfc3339(image.time, 3)));
    }
    Ok(value)
}

async fn remove(images: &Images, args: &Remove) -> Result<u8> {
    let mut code = 0;
    for name in &args.named.images {
        match images.remove(name, args.force).await {
            Ok(removed) => {
                let (names, freed) = (removed.names.join(", "), human::bytes(removed.freed));
                out::line(format_args!("removed {names}, freed {freed}"))?;
            }
            Err(error) => {
                report(&anyhow::Error::new(error).context(format!("cannot remove {name}")));
                code = FAILED;
            }
        }
    }
    Ok(code)
}

/// Writes images to a file, which gets its name when it is complete, or to standard output.
async fn save(images: &Images, args: &Save) -> Result<u8> {
    let mut saved = images.save(&args.named.images).await?;
    let Some(path) = &args.output else {
        if io::stdout().is_terminal() {
            bail!("cannot write an image to a terminal: redirect standard output, or use --output");
        }
        while let Some(piece) = saved.next().await? {
            out::data(&piece)?;
        }
        return Ok(0);
    };
    let cannot = || format!("cannot write {}", path.display());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(cannot)?;
    while let Some(piece) = saved.next().await? {
        file.write_all(&piece).with_context(cannot)?;
    }
    file.persist(path).map_err(|e| e.error).with_context(cannot)?;
    Ok(0)
}

async fn inspect(images: &Images, args: &Named) -> Result<u8> {
    let all = images.list().await?;
    let (mut found, mut code) = (Vec::new(), 0);
    for name in &args.images {
        let details = match pick(&all, name) {
            Ok(image) => images.details(&image.name).await.map_err(anyhow::Error::from),
            Err(error) => Err(error),
        };
        match details {
            Ok(details) => found.push(details_as_json(&details)?),
            Err(error) => {
                report(&error);
                code = FAILED;
            }
        }
    }
    out::json_pretty(&found)?;
    Ok(code)
}

/// Finds an image by its name, in any spelling, or by the start of its digest.
fn pick<'a>(images: &'a [ImageInfo], text: &str) -> Result<&'a ImageInfo> {
    let reference = text.parse::<ImageReference>().map(|reference| reference.to_string());
    let is_named = |image: &&ImageInfo| {
        image.name == text || reference.as_ref().is_ok_and(|name| image.name == *name)
    };
    if let Some(image) = images.iter().find(is_named) {
        return Ok(image);
    }
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    let has_digest = |image: &&ImageInfo| {
        let digests = std::iter::once(&image.digest).chain(&image.index);
        let mut hexes = digests.filter_map(|digest| Some(digest.split_once(':')?.1));
        hex.len() >= 6 && hexes.any(|digest| digest.starts_with(hex))
    };
    let by_digest: Vec<_> = images.iter().filter(has_digest).collect();
    match by_digest[..] {
        [image] => Ok(image),
        [] => bail!("no image is called {text}; `image ls` lists them"),
        _ => {
            let names: Vec<_> = by_digest.iter().map(|image| image.name.as_str()).collect();
            bail!("{text} is ambiguous: it matches {}", names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str, hex: &str) -> ImageInfo {
        let digest = format!("sha256:{hex:0<64}");
        let value = json!({
            "name": name, "digest": digest, "index": null, "chain_id": digest,
            "config": boxlite_runtime::ImageConfig::default(),
            "origin": null, "time": 0, "size": 1, "disk": null, "problem": null,
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn images_are_found_by_name_and_digest() {
        let images = [image("alpine:latest", "abcdef1"), image("debian:latest", "abcdef2")];
        let name = |text| pick(&images, text).map(|image| &*image.name).map_err(|e| e.to_string());
        assert_eq!(name("alpine:latest"), Ok("alpine:latest"));
        assert_eq!(name("abcdef2"), Ok("debian:latest"));
        assert_eq!(name("sha256:abcdef1"), Ok("alpine:latest"));
        assert!(name("abcdef").unwrap_err().contains("debian"));
        assert!(name("abc").unwrap_err().contains("image ls"));
    }

    #[test]
    fn an_import_is_named_by_its_folder() {
        let name = |text: &str| default_name(&text.parse().unwrap());
        assert_eq!(name("oci:/x/Debian"), Some("debian".into()));
        assert_eq!(name("oci:/x/debian:12"), Some("debian:12".into()));
        assert_eq!(name("docker-archive:/x/a.tar:b:1"), Some("b:1".into()));
        assert_eq!(name("rootfs:/x/root"), Some("root".into()));
    }
}
