//! A device that is none: the kernels, compiled for the host by g++ with the emulator around them, on memory that guard pages end.

use std::cell::RefCell;
use std::ffi::{CString, c_void};
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::sync::{Mutex, OnceLock};

use super::super::device::{Arg, Backend, Device, DeviceBuffer, Graph, Grid};
use super::super::gemm::Product;
use super::super::kernels::{HEADS, Kernel};
use crate::error::{Error, Result};

/// The emulator's folder.
pub(super) fn folder() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/src/tape/cuda/emulate").to_owned()
}

/// Compiles a program or a library of the emulator; `None`, said aloud, where there is no g++.
pub(super) fn compile(test: &str, source: &str, to: &Path, options: &[&str]) -> Option<()> {
    let source = format!("{}/{source}", folder());
    let output =
        Command::new("g++").args(["-std=c++17", "-O2", "-w"]).args(options).arg(&source).arg("-o").arg(to).output();
    match output {
        Err(error) => {
            println!("SKIPPED {test}: g++ does not start: {error}");
            None
        }
        Ok(output) => {
            assert!(output.status.success(), "{source}: {}", String::from_utf8_lossy(&output.stderr));
            Some(())
        }
    }
}

type Launch = unsafe extern "C" fn(*const i8, u32, u32, u32, u32, u32, *mut *mut c_void, *const i32, i32) -> i32;
type Multiply = unsafe extern "C" fn(*const i64, *const c_void, *const c_void, *const c_void, *mut c_void, f32, f32);

/// The library's functions. It has one block of threads in all the process: calls take turns.
struct Library {
    launch: Launch,
    product: Multiply,
    turn: Mutex<()>,
}

struct Host {
    library: &'static Library,
    /// What is being captured.
    calls: RefCell<Option<Vec<Call>>>,
}

/// What a graph holds, with its addresses and sizes.
enum Call {
    Launch(Kernel, Grid, Vec<Arg>),
    Product(Product),
}

struct HostGraph {
    library: &'static Library,
    calls: Vec<Call>,
}

impl Graph for HostGraph {
    fn replay(&self) -> Result<()> {
        self.calls.iter().try_for_each(|call| self.library.call(call))
    }
}

/// The emulated device, for heads of a width of [`HEADS`]; `None` where there is no g++.
pub(super) fn device(test: &str, head: usize) -> Option<Device> {
    static LIBRARIES: [OnceLock<Option<Library>>; HEADS.len()] = [const { OnceLock::new() }; HEADS.len()];
    let place = HEADS.iter().position(|known| *known == head)?;
    let library = LIBRARIES[place].get_or_init(|| load(test, head)).as_ref();
    if library.is_none() {
        println!("SKIPPED {test}: g++ does not start");
    }
    library.map(|library| Device::emulated(Rc::new(Host { library, calls: RefCell::default() })))
}

fn load(test: &str, head: usize) -> Option<Library> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernels.so");
    compile(test, "library.cpp", &path, &["-fPIC", "-shared", &format!("-DHEAD={head}")])?;
    let path = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the library is the one just compiled; its functions have these types (see emulate/library.cpp) and it is never closed.
    unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        assert!(!library.is_null(), "the emulator cannot be loaded");
        let [launch, product] = [c"emulate_launch", c"emulate_product"].map(|name| libc::dlsym(library, name.as_ptr()));
        assert!(!launch.is_null() && !product.is_null(), "the emulator lacks a function");
        let launch = std::mem::transmute::<*mut c_void, Launch>(launch);
        let product = std::mem::transmute::<*mut c_void, Multiply>(product);
        Some(Library { launch, product, turn: Mutex::new(()) })
    }
}

impl Library {
    fn call(&self, call: &Call) -> Result<()> {
        match call {
            Call::Launch(kernel, grid, args) => self.launch(*kernel, *grid, args),
            Call::Product(product) => {
                self.multiply(product);
                Ok(())
            }
        }
    }

    fn launch(&self, kernel: Kernel, grid: Grid, args: &[Arg]) -> Result<()> {
        let _turn = self.turn.lock().unwrap();
        let name = CString::new(kernel.name()).unwrap();
        let mut pointers: Vec<*mut c_void> = args.iter().map(Arg::pointer).collect();
        let kind = |arg: &Arg| match arg {
            Arg::At(_) => 0,
            Arg::Int(_) => 1,
            Arg::Long(_) => 2,
            Arg::Float(_) => 3,
        };
        let kinds: Vec<i32> = args.iter().map(kind).collect();
        let (x, y, z) = grid.blocks;
        let (threads, shared) = (grid.threads as u32, grid.shared_bytes as u32);
        let (args, n) = (pointers.as_mut_ptr(), kinds.len() as i32);
        // SAFETY: the library checks the number and the kinds of the arguments; addresses are the caller's.
        let result = unsafe {
            let launch = self.launch;
            launch(name.as_ptr().cast(), x as u32, y as u32, z as u32, threads, shared, args, kinds.as_ptr(), n)
        };
        match result {
            0 => Ok(()),
            1 => Err(Error::Device(format!("{}: arguments of other kinds: {kinds:?}", kernel.name()))),
            _ => Err(Error::Device(format!("{}: no such kernel", kernel.name()))),
        }
    }

    fn multiply(&self, product: &Product) {
        let shape = product.shape;
        let (ta, tb) = shape.transposes;
        let sizes = [shape.m, shape.n, shape.k, usize::from(ta), usize::from(tb), shape.strides.0, shape.strides.1];
        let more = [shape.strides.2, usize::from(shape.is_float), shape.batch];
        let sizes: Vec<i64> = sizes.into_iter().chain(more).map(|size| size as i64).collect();
        let [a, b, c] = [product.a, product.b, product.c].map(|at| at as *const c_void);
        // SAFETY: addresses are the caller's.
        unsafe { (self.product)(sizes.as_ptr(), a, b, c, product.out as *mut c_void, product.alpha, product.beta) };
    }
}

impl Host {
    /// Runs it, or keeps it for the graph that is being captured.
    fn call(&self, call: Call) -> Result<()> {
        match &mut *self.calls.borrow_mut() {
            Some(calls) => calls.push(call),
            None => return self.library.call(&call),
        }
        Ok(())
    }
}

/// Pages of which the last one may not be touched.
struct Pages {
    start: *mut c_void,
    n_bytes: usize,
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: they were mapped by `zeros` and are used no more.
        unsafe { libc::munmap(self.start, self.n_bytes) };
    }
}

const PAGE: usize = 4096;

impl Backend for Host {
    fn zeros(&self, n_bytes: usize) -> Result<DeviceBuffer> {
        let room = n_bytes.max(16).next_multiple_of(16);
        let pages = room.next_multiple_of(PAGE);
        // SAFETY: a fresh mapping; its last page is closed.
        let start = unsafe {
            let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let start = libc::mmap(std::ptr::null_mut(), pages + PAGE, access, kind, -1, 0);
            assert!(start != libc::MAP_FAILED, "no memory");
            assert_eq!(libc::mprotect(start.add(pages), PAGE, libc::PROT_NONE), 0);
            start
        };
        let at = start as u64 + (pages - room) as u64;
        Ok(DeviceBuffer { at, n_bytes, _owner: Box::new(Pages { start, n_bytes: pages + PAGE }) })
    }

    fn write(&self, to: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: as of the GPU: callers give addresses of buffers of at least that many bytes.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }

    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn copy(&self, to: u64, from: u64, n_bytes: usize) -> Result<()> {
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, n_bytes) };
        Ok(())
    }

    fn clear(&self, at: u64, n_bytes: usize) -> Result<()> {
        // SAFETY: as in `write`.
        unsafe { std::ptr::write_bytes(at as *mut u8, 0, n_bytes) };
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }

    fn launch(&self, kernel: Kernel, grid: Grid, args: &[Arg]) -> Result<()> {
        self.call(Call::Launch(kernel, grid, args.to_vec()))
    }

    fn product(&self, product: &Product) -> Result<()> {
        self.call(Call::Product(*product))
    }

    fn capture(&self, queue: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Graph>> {
        *self.calls.borrow_mut() = Some(Vec::new());
        let queued = queue();
        let calls = self.calls.take().unwrap();
        queued.map(|()| Box::new(HostGraph { library: self.library, calls }) as Box<dyn Graph>)
    }

    fn own_bytes(&self) -> usize {
        0
    }

    fn describe(&self) -> String {
        "the host".to_owned()
    }
}
