//! Loop devices: a part of a file as a disk, for the kernel's own filesystems.

#![expect(unsafe_code, reason = "ioctl has no safe form")]

use nix::libc;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// `LOOP_CTL_GET_FREE` of `linux/loop.h`.
const GET_FREE: libc::c_ulong = 0x4C82;
/// `LOOP_CONFIGURE`, in kernels from 5.8 on.
const CONFIGURE: libc::c_ulong = 0x4C0A;
/// `LO_FLAGS_READ_ONLY`.
const READ_ONLY: u32 = 1;
/// `LO_FLAGS_AUTOCLEAR`: the device is given back with its last user.
const AUTOCLEAR: u32 = 4;
/// Others may take the device that was found free.
const MAX_TRIES: u32 = 64;

/// `struct loop_info64`.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// A loop device, given back when neither this nor a mount of it is left.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    _device: File,
}

impl LoopDevice {
    /// Shows `size_bytes` of `file` from `offset_bytes` on as a disk, which takes writes if `write`.
    ///
    /// # Errors
    /// If there are no loop devices, or this process may not use them; `EINVAL` where the kernel is too old.
    pub fn new(file: &File, offset_bytes: u64, size_bytes: u64, write: bool) -> io::Result<Self> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        let config = Config {
            fd: u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?,
            block_size: 0,
            info: Info {
                device: 0,
                inode: 0,
                rdevice: 0,
                offset: offset_bytes,
                size_limit: size_bytes,
                number: 0,
                encrypt_type: 0,
                encrypt_key_size: 0,
                flags: AUTOCLEAR | if write { 0 } else { READ_ONLY },
                file_name: [0; 64],
                crypt_name: [0; 64],
                encrypt_key: [0; 32],
                init: [0; 2],
            },
            reserved: [0; 8],
        };
        for _ in 0..MAX_TRIES {
            // SAFETY: the request has no argument, and the descriptor is open.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), GET_FREE) };
            if number < 0 {
                return Err(io::Error::last_os_error());
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = OpenOptions::new().read(true).write(write).open(&path)?;
            // SAFETY: the kernel reads one `struct loop_config`, which lives as long as the call and has its layout.
            if unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE, &raw const config) } == 0 {
                return Ok(Self { path, _device: device });
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EBUSY) {
                return Err(error);
            }
        }
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
