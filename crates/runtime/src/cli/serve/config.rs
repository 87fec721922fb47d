//! The options of `foveal serve` as they are meant.

use std::time::Duration;

use foveal_fetch::Policy;
use foveal_processor::Limits;
use foveal_runtime::ModelOptions;
use foveal_server::ServerConfig;

use super::args::{RawMedia, RawScheduling, RawServe};
use crate::cli::config::{ModelPlace, at_least_one, check_memory_share, needed, options, pinned_bytes, place};
use crate::cli::error::UsageError;

/// What each request's pictures may have on their way to the GPU while all the others' are, too.
const PIXELS_EACH: [u32; 2] = [512, 512];

#[derive(Debug)]
pub(crate) struct ServeConfig {
    pub(crate) model: ModelPlace,
    /// `HOST:PORT`.
    pub(crate) address: String,
    /// Empty: the model's own.
    pub(crate) names: Vec<String>,
    pub(crate) server: ServerConfig,
    pub(crate) options: ModelOptions,
}

impl ServeConfig {
    pub(crate) fn new(raw: RawServe) -> Result<Self, UsageError> {
        let RawServe { host, port, served_model_name, api_key, media, scheduling, .. } = raw;
        let model = place(raw.model, needed(&raw.machine))?;
        let machine = options(raw.machine)?;
        if api_key.iter().any(|key| key.trim().is_empty()) {
            return Err(UsageError::new(
                "--api-key is empty: whoever sends none would pass; leave the option out for that",
            ));
        }
        let RawScheduling { max_num_seqs, max_num_batched_tokens, max_requests, .. } = scheduling;
        at_least_one(&[
            ("--max-num-seqs", max_num_seqs.unwrap_or(1)),
            ("--max-num-batched-tokens", max_num_batched_tokens.unwrap_or(1)),
            ("--max-requests", max_requests),
            ("--preprocess-threads", media.preprocess_threads.unwrap_or(1)),
            ("--max-image-bytes", media.max_image_bytes),
            ("--max-body-bytes", media.max_body_bytes),
            ("--max-total-body-bytes", media.max_total_body_bytes),
        ])?;
        at_least_one(&[("--read-timeout", raw.read_timeout), ("--media-timeout", media.media_timeout)])?;
        let share = scheduling.gpu_memory_utilization;
        check_memory_share(share)?;
        let limits = Limits {
            max_image_bytes: media.max_image_bytes,
            max_image_pixels: media.max_image_pixels,
            max_images_per_request: max_images(&media.limit_mm_per_prompt)?,
            ..Limits::default()
        };
        let default = ServerConfig::default();
        let server = ServerConfig {
            api_keys: api_key,
            preprocess_threads: media.preprocess_threads.unwrap_or(default.preprocess_threads),
            max_body_bytes: media.max_body_bytes,
            max_total_body_bytes: media.max_total_body_bytes,
            max_requests,
            read_timeout: Duration::from_secs(raw.read_timeout),
            shutdown_timeout: Duration::from_secs(raw.shutdown_timeout),
            allowed_origins: raw.allowed_origins,
            page: !raw.no_page,
            media: policy(media)?,
            ..default
        };
        let options = ModelOptions {
            max_num_seqs,
            max_num_batched_tokens,
            // Whoever was admitted may wait: the bound is on requests as a whole.
            max_waiting: Some(max_requests.saturating_mul(server.max_choices)),
            pinned_bytes: Some(pinned_bytes(max_requests, PIXELS_EACH)),
            gpu_memory_utilization: Some(share),
            kv_cache_bytes: scheduling.kv_cache_memory_bytes,
            run_ahead: !scheduling.no_run_ahead,
            no_prefix_caching: scheduling.no_enable_prefix_caching,
            limits,
            ..machine
        };
        let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Ok(Self { model, address, names: served_model_name, server, options })
    }
}

fn policy(media: RawMedia) -> Result<Policy, UsageError> {
    let domains = media.allowed_media_domains.iter().map(|domain| domain.parse());
    Ok(Policy {
        allowed_media_domains: domains
            .collect::<Result<_, _>>()
            .map_err(|error| UsageError::new(format!("--allowed-media-domains: {error}")))?,
        allowed_local_media_path: media.allowed_local_media_path,
        allow_private_addresses: media.allow_private_media,
        max_redirects: media.max_media_redirects,
        max_bytes: media.max_image_bytes,
        timeout: Duration::from_secs(media.media_timeout),
        ..Policy::default()
    })
}

/// `4`, `image=4` or `{"image": 4}`; of video vLLM's users say 0.
fn max_images(text: &str) -> Result<usize, UsageError> {
    let wrong = || {
        let words = "give the most pictures of one request, as 4, image=4 or {\"image\": 4}";
        UsageError::new(format!("--limit-mm-per-prompt is `{text}`; {words}"))
    };
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let pairs: Vec<(String, usize)> = if text.trim_start().starts_with('{') {
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).map_err(|_| wrong())?;
        let pair = |(kind, number): (String, serde_json::Value)| Some((kind, usize::try_from(number.as_u64()?).ok()?));
        object.into_iter().map(pair).collect::<Option<_>>().ok_or_else(wrong)?
    } else {
        let pair = |pair: &str| {
            let (kind, number) = pair.split_once('=')?;
            Some((kind.trim().to_owned(), number.trim().parse().ok()?))
        };
        text.split(',').map(pair).collect::<Option<_>>().ok_or_else(wrong)?
    };
    let mut images = None;
    for (kind, number) in pairs {
        match (kind.as_str(), number) {
            ("image", number) => images = Some(number),
            ("video" | "audio", 0) => {}
            ("video" | "audio", _) => {
                return Err(UsageError::new(format!("--limit-mm-per-prompt: {kind} isn't served; it may be 0")));
            }
            _ => return Err(wrong()),
        }
    }
    images.ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use foveal_engine::EngineBuilder;

    use super::{RawServe, ServeConfig, max_images};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        serve: RawServe,
    }

    #[test]
    fn a_picture_of_each_request_has_room_for_its_pixels() {
        for max_requests in [1, 256, 1024] {
            let line = Line::parse_from(["serve", "--max-requests", &max_requests.to_string()]);
            let bytes = ServeConfig::new(line.serve).unwrap().options.pinned_bytes.unwrap();
            // Blocks of powers of two, beside an eighth of the default for copies.
            let block_bytes = (512 * 512 * 3_usize).next_power_of_two();
            assert!(
                bytes - EngineBuilder::DEFAULT_PINNED_BYTES / 8 >= max_requests * block_bytes,
                "{max_requests}: {bytes}"
            );
        }
    }

    #[test]
    fn what_cant_be_none_is_refused_by_name() {
        for option in [
            "--max-num-seqs",
            "--max-requests",
            "--max-body-bytes",
            "--read-timeout",
            "--media-timeout",
            "--max-pixels",
        ] {
            let config = |value| ServeConfig::new(Line::parse_from(["serve", option, value]).serve);
            let error = config("0").unwrap_err();
            assert!(error.to_string().starts_with(&format!("{option} is 0")), "{error}");
            assert!(config("70000").is_ok(), "{option}");
        }
    }

    #[test]
    fn the_most_pictures_are_said_in_three_ways() {
        for text in ["4", "image=4", "image=4,video=0", r#"{"image": 4}"#, r#"{"image":4,"video":0}"#] {
            assert_eq!(max_images(text).unwrap(), 4, "{text}");
        }
        for text in ["", "x", "image", "image=x", "video=1", "video=0", "{", r#"{"image": -1}"#, "images=4"] {
            assert!(max_images(text).is_err(), "{text}");
        }
    }
}
