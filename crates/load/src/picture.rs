//! Pictures that nobody took.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder as _};

use crate::error::LoadError;
use crate::options::ImageFormat;
use crate::random::Random;

/// What photographs are usually stored with.
const JPEG_QUALITY: u8 = 85;
/// Noise of at most this much on a value of 0 to 255: a JPEG of 512x512 then takes about 70 kB, as a photograph does.
const NOISE: u64 = 21;
/// Rectangles of one colour: edges.
const NUM_RECTANGLES: usize = 24;

/// A picture as a data URL: a gradient, rectangles and noise, all drawn from `random`.
pub(crate) fn data_url(
    [width, height]: [u32; 2],
    format: ImageFormat,
    random: &mut Random,
) -> Result<String, LoadError> {
    let pixels = draw(width as usize, height as usize, random);
    let mut file = Vec::with_capacity(pixels.len());
    let color = ExtendedColorType::Rgb8;
    let encoded = match format {
        ImageFormat::Jpeg => {
            JpegEncoder::new_with_quality(&mut file, JPEG_QUALITY).write_image(&pixels, width, height, color)
        }
        ImageFormat::Png => PngEncoder::new(&mut file).write_image(&pixels, width, height, color),
    };
    encoded.map_err(|_| LoadError::Picture { width, height, format: format.as_str() })?;
    let mut url = format!("data:image/{};base64,", format.as_str());
    STANDARD.encode_string(&file, &mut url);
    Ok(url)
}

/// RGB, row after row.
fn draw(width: usize, height: usize, random: &mut Random) -> Vec<u8> {
    let mut color = || [(); 3].map(|()| (random.next_bits() >> 53) as u8);
    let corners = [(); 4].map(|()| color().map(f32::from));
    let fills = [(); NUM_RECTANGLES].map(|()| color());
    let mut pixels = gradient(width, height, corners);
    for fill in fills {
        let (left, top) = (random.below(width), random.below(height));
        let (wide, high) = (1 + random.below(width.div_ceil(4)), 1 + random.below(height.div_ceil(4)));
        for row in pixels.chunks_exact_mut(3 * width).skip(top).take(high) {
            row.chunks_exact_mut(3).skip(left).take(wide).for_each(|pixel| pixel.copy_from_slice(&fill));
        }
    }
    for chunk in pixels.chunks_mut(6) {
        // Six values of noise from 61 bits, ten each.
        let mut bits = random.next_bits();
        for value in chunk {
            let noise = ((bits & 0x3ff) * NOISE) >> 10;
            *value = value.saturating_sub((NOISE / 2) as u8).saturating_add(noise as u8);
            bits >>= 10;
        }
    }
    pixels
}

/// From corner to corner: top left, top right, bottom left, bottom right.
fn gradient(width: usize, height: usize, [tl, tr, bl, br]: [[f32; 3]; 4]) -> Vec<u8> {
    let mix = |a: [f32; 3], b: [f32; 3], share: f32| {
        let mut mixed = a.into_iter().zip(b).map(|(a, b)| a + (b - a) * share);
        [(); 3].map(|()| mixed.next().unwrap_or_default())
    };
    let mut pixels = Vec::with_capacity(3 * width * height);
    for y in 0..height {
        let down = y as f32 / height as f32;
        let (left, right) = (mix(tl, bl, down), mix(tr, br, down));
        for x in 0..width {
            pixels.extend(mix(left, right, x as f32 / width as f32).map(|value| value as u8));
        }
    }
    pixels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(size: [u32; 2], format: ImageFormat, number: u64) -> Vec<u8> {
        let url = data_url(size, format, &mut Random::new(0, number)).unwrap();
        let prefix = format!("data:image/{};base64,", format.as_str());
        STANDARD.decode(url.strip_prefix(&prefix).unwrap()).unwrap()
    }

    #[test]
    fn pictures_have_their_size_and_are_all_different() {
        for format in [ImageFormat::Jpeg, ImageFormat::Png] {
            for size in [[33, 7], [1, 1], [2, 64]] {
                let pictures: Vec<_> =
                    (0..3).map(|n| image::load_from_memory(&file(size, format, n)).unwrap().to_rgb8()).collect();
                for (at, picture) in pictures.iter().enumerate() {
                    assert_eq!([picture.width(), picture.height()], size);
                    assert!(pictures.iter().skip(at + 1).all(|other| other.as_raw() != picture.as_raw()));
                }
            }
        }
        assert_eq!(file([8, 8], ImageFormat::Png, 1), file([8, 8], ImageFormat::Png, 1));
    }

    /// A photograph of this size takes 40 to 120 kB as a JPEG, and several times that as a PNG.
    #[test]
    fn files_are_as_large_as_photographs() {
        let [jpeg, png] = [ImageFormat::Jpeg, ImageFormat::Png].map(|format| file([512, 512], format, 0).len());
        assert!((40_000..120_000).contains(&jpeg), "{jpeg}");
        assert!((200_000..700_000).contains(&png), "{png}");
    }

    #[test]
    fn what_a_format_does_not_take_is_said() {
        let result = data_url([70_000, 1], ImageFormat::Jpeg, &mut Random::new(0, 0));
        assert!(result.unwrap_err().to_string().contains("70000x1 can't be encoded as jpeg"));
    }
}
