//! `boxlite-vmm inspect`: shows everything about boxes, as JSON.

use anyhow::Result;
use boxlite_runtime::Runtime;
use clap::Args;
use serde_json::{Value, json};

use crate::commands::list::as_json;
use crate::exit::{FAILED, report};
use crate::global::Global;
use crate::out;

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Names or IDs
    #[arg(required = true, value_name = "BOX")]
    boxes: Vec<String>,
}

pub(crate) async fn inspect(global: &Global, args: &Inspect) -> Result<u8> {
    let runtime = global.runtime().await?;
    let (mut found, mut code) = (Vec::new(), 0);
    for name in &args.boxes {
        match look(&runtime, name).await {
            Ok(value) => found.push(value),
            Err(error) => {
                report(&error);
                code = FAILED;
            }
        }
    }
    out::json_pretty(&found)?;
    Ok(code)
}

async fn look(runtime: &Runtime, name: &str) -> Result<Value> {
    let sandbox = runtime.get(name).await?;
    let info = sandbox.info().await?;
    let config = sandbox.config();
    let mut value = as_json(&info)?;
    if let Some(object) = value.as_object_mut() {
        object.insert("image_digest".into(), json!(config.image_digest));
        object.insert("image_config".into(), serde_json::to_value(&config.image)?);
        object.insert("options".into(), serde_json::to_value(&config.options)?);
        object.insert("boot_time_us".into(), json!(info.boot_time().map(|time| time.as_micros())));
    }
    Ok(value)
}
