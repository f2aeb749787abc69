//! Files in and out of a box: copies a folder in, sorts its contents in the box, and copies the result
//! back.
//!
//! `… --example files -- oci:target/images/busybox`

use std::time::Duration;

use boxlite_runtime::{BoxOptions, Runtime, RuntimeOptions};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let image = std::env::args().nth(1).ok_or("which image? e.g. oci:target/images/busybox")?;
    let runtime = Runtime::open(RuntimeOptions::default()).await?;
    let options = BoxOptions::new(image).memory_mib(256).auto_remove(true);
    let sandbox = runtime.create(options).await?;
    sandbox.start().await?;

    let here = tempfile::tempdir()?;
    let input = here.path().join("input");
    std::fs::create_dir(&input)?;
    for (name, text) in [("a.txt", "pear\napple\n"), ("b.txt", "fig\n")] {
        std::fs::write(input.join(name), text)?;
    }

    // /work does not exist yet, so the copy of the folder gets that name.
    let copied = sandbox.copy_into(&input, "/work").await?;
    println!("{} entries in, {} bytes", copied.entries, copied.bytes);

    let line = "cat /work/*.txt | sort > /work/sorted";
    println!("sorted in the box: {:?}", sandbox.exec(["sh", "-c", line]).status().await?);

    // The box is not trusted: a copy writes only the file that was asked for.
    let copied = sandbox.copy_out("/work/sorted", here.path()).await?;
    println!("{} bytes out", copied.bytes);
    print!("{}", std::fs::read_to_string(here.path().join("sorted"))?);

    sandbox.stop(Duration::from_secs(5)).await?;
    Ok(())
}
