//! `boxlite-vmm image`: import, list, remove.

use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use boxlite_rootfs_builder::{ImageReference, ImageStore};
use indicatif::{BinaryBytes, HumanDuration};

use super::args::{Global, Image};
use super::progress::ImageBar;

pub(super) async fn image(global: &Global, command: Image) -> Result<u8> {
    // Images lie where boxes run: a disk of the software host's is not to be seen from here.
    if let Some(code) = global.elsewhere().await? {
        return Ok(code);
    }
    match command {
        Image::Import { source, name } => import(global, &source, name).await,
        Image::Ls => list(&store(global)?),
        Image::Rm { images } => remove(&store(global)?, &images),
    }
}

fn store(global: &Global) -> Result<ImageStore> {
    Ok(ImageStore::open(global.home()?.path().join("images"))?)
}

async fn import(global: &Global, source: &str, name: Option<String>) -> Result<u8> {
    let source: ImageReference = source.parse()?;
    let name = match name.or_else(|| default_name(&source)) {
        Some(name) => name,
        None => bail!("what is the image to be called? Give a name behind {source}"),
    };
    let images = global.runtime().await?.images();
    let image = images.import(source.to_string(), name, ImageBar::new()).await?;
    println!("{} {}", image.name, image.digest);
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

fn list(store: &ImageStore) -> Result<u8> {
    let listing = store.list()?;
    let rows: Vec<[String; 4]> = listing
        .images
        .iter()
        .map(|image| {
            let digest: String = image.digest.hex().chars().take(12).collect();
            let age = SystemTime::now().duration_since(image.time).unwrap_or_default();
            let size = BinaryBytes(image.size).to_string();
            [image.name.clone(), digest, size, format!("{} ago", HumanDuration(age))]
        })
        .collect();
    let header = ["NAME", "DIGEST", "SIZE", "CREATED"].map(String::from);
    print_table(&header, &rows);
    for image in &listing.images {
        if let Some(problem) = &image.disk_problem {
            eprintln!(
                "boxlite-vmm: {}: {problem}; its disk is made anew when it is used",
                image.name
            );
        }
    }
    for damaged in &listing.damaged {
        eprintln!("boxlite-vmm: {}; remove it with `image rm {}`", damaged.error, damaged.id);
    }
    Ok(0)
}

fn print_table(header: &[String; 4], rows: &[[String; 4]]) {
    let width = |column: usize| {
        std::iter::once(header).chain(rows).map(|row| row[column].len()).max().unwrap_or(0)
    };
    let widths = [0, 1, 2, 3].map(width);
    for row in std::iter::once(header).chain(rows) {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        println!("{}", cells.collect::<Vec<_>>().join("   ").trim_end());
    }
}

fn remove(store: &ImageStore, images: &[String]) -> Result<u8> {
    for image in images {
        let removed = store.remove(image).with_context(|| format!("cannot remove {image}"))?;
        println!("removed {}, freed {}", removed.name, BinaryBytes(removed.freed));
    }
    Ok(0)
}
