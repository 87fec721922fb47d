//! A kernel's parameters.
#![allow(unsafe_code)]

use std::ffi::c_void;

use super::TensorMap;
use crate::{DeviceError, View, ViewMut};

/// The most parameters of a kernel.
const MAX_ARGS: usize = 32;
/// The most tensor maps among them.
const MAX_MAPS: usize = 4;

/// Where a parameter lies.
#[derive(Clone, Copy)]
enum Slot {
    Word(usize),
    Map(usize),
}

/// A kernel's parameters, in order, without heap memory. Whether number and types are those of the kernel is for the
/// caller of [`super::CudaStream::launch`] to know.
pub struct Args {
    words: [u64; MAX_ARGS],
    maps: [TensorMap; MAX_MAPS],
    slots: [Slot; MAX_ARGS],
    num_words: usize,
    num_maps: usize,
    num_slots: usize,
    has_overflown: bool,
}

impl Default for Args {
    fn default() -> Self {
        Self::new()
    }
}

impl Args {
    /// No parameters yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            words: [0; MAX_ARGS],
            maps: [TensorMap::EMPTY; MAX_MAPS],
            slots: [Slot::Word(0); MAX_ARGS],
            num_words: 0,
            num_maps: 0,
            num_slots: 0,
            has_overflown: false,
        }
    }

    fn slot(&mut self, slot: Slot) {
        match self.slots.get_mut(self.num_slots) {
            Some(place) => *place = slot,
            None => self.has_overflown = true,
        }
        self.num_slots += 1;
    }

    /// Parameters are little-endian: the first bytes of the word are the value.
    fn word(&mut self, value: u64) -> &mut Self {
        match self.words.get_mut(self.num_words) {
            Some(place) => *place = value,
            None => self.has_overflown = true,
        }
        self.slot(Slot::Word(self.num_words));
        self.num_words += 1;
        self
    }

    /// The address of a tensor that the kernel reads.
    ///
    /// # Errors
    /// [`DeviceError::NotOnDevice`].
    pub fn ptr(&mut self, view: &View<'_>) -> Result<&mut Self, DeviceError> {
        let ptr = view.device_ptr()?;
        Ok(self.word(ptr))
    }

    /// The address of a tensor that the kernel writes.
    ///
    /// # Errors
    /// [`DeviceError::NotOnDevice`].
    pub fn ptr_mut(&mut self, view: &ViewMut<'_>) -> Result<&mut Self, DeviceError> {
        let ptr = view.device_ptr()?;
        Ok(self.word(ptr))
    }

    /// A null pointer.
    pub fn null(&mut self) -> &mut Self {
        self.word(0)
    }

    /// The address of a tensor that the kernel reads, or null.
    ///
    /// # Errors
    /// [`DeviceError::NotOnDevice`].
    pub fn ptr_or_null(&mut self, view: Option<&View<'_>>) -> Result<&mut Self, DeviceError> {
        let ptr = view.map_or(Ok(0), View::device_ptr)?;
        Ok(self.word(ptr))
    }

    /// The address of a tensor that the kernel writes, or null.
    ///
    /// # Errors
    /// [`DeviceError::NotOnDevice`].
    pub fn ptr_mut_or_null(&mut self, view: Option<&ViewMut<'_>>) -> Result<&mut Self, DeviceError> {
        let ptr = view.map_or(Ok(0), ViewMut::device_ptr)?;
        Ok(self.word(ptr))
    }

    /// An `int`.
    pub fn i32(&mut self, value: i32) -> &mut Self {
        self.word(u64::from(value.cast_unsigned()))
    }

    /// A count as an `int`.
    ///
    /// # Errors
    /// [`DeviceError::TooLarge`] for one above 31 bits.
    pub fn usize_as_i32(&mut self, value: usize) -> Result<&mut Self, DeviceError> {
        let value = i32::try_from(value).map_err(|_| DeviceError::TooLarge { value })?;
        Ok(self.i32(value))
    }

    /// An `unsigned`.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.word(u64::from(value))
    }

    /// An `unsigned long long`.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.word(value)
    }

    /// A `float`.
    pub fn f32(&mut self, value: f32) -> &mut Self {
        self.word(u64::from(value.to_bits()))
    }

    /// A `const __grid_constant__ CUtensorMap`.
    pub fn tensor_map(&mut self, map: &TensorMap) -> &mut Self {
        match self.maps.get_mut(self.num_maps) {
            Some(place) => *place = *map,
            None => self.has_overflown = true,
        }
        self.slot(Slot::Map(self.num_maps));
        self.num_maps += 1;
        self
    }

    /// The addresses of the parameters, as the driver takes them; they point into `self`.
    pub(super) fn addresses(&mut self) -> Result<[*mut c_void; MAX_ARGS], DeviceError> {
        if self.has_overflown {
            return Err(DeviceError::TooLarge { value: self.num_slots });
        }
        let mut addresses = [std::ptr::null_mut(); MAX_ARGS];
        for (address, slot) in addresses.iter_mut().zip(self.slots).take(self.num_slots) {
            *address = match slot {
                Slot::Word(i) => self.words.get_mut(i).map_or(std::ptr::null_mut(), |w| std::ptr::from_mut(w).cast()),
                Slot::Map(i) => self.maps.get_mut(i).map_or(std::ptr::null_mut(), |m| std::ptr::from_mut(m).cast()),
            };
        }
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_keep_their_order_and_their_bytes() {
        let mut args = Args::new();
        args.i32(-2).f32(1.5).u64(u64::MAX).tensor_map(&TensorMap::EMPTY).u32(7);
        let addresses = args.addresses().unwrap();
        assert!(addresses[..5].iter().all(|a| !a.is_null()) && addresses[5..].iter().all(|a| a.is_null()));
        assert_eq!(addresses[3].addr() % 128, 0);
        assert_eq!(args.words[0] as u32 as i32, -2);
        assert_eq!(f32::from_bits(args.words[1] as u32), 1.5);
        assert_eq!(args.words[3], 7);
    }

    #[test]
    fn too_many_parameters_and_host_memory_are_refused() {
        let mut args = Args::new();
        for _ in 0..=MAX_ARGS {
            args.u32(0);
        }
        assert!(matches!(args.addresses(), Err(DeviceError::TooLarge { value: 33 })));
        let view = View::from_slice(&[1_i32], &[1]).unwrap();
        assert!(matches!(Args::new().ptr(&view), Err(DeviceError::NotOnDevice { .. })));
        assert!(matches!(Args::new().usize_as_i32(1 << 31), Err(DeviceError::TooLarge { .. })));
    }
}
