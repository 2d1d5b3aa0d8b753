//! The commands beside `server` and `task`.

mod carried;
pub mod doctor;
pub mod import_go;
pub mod promote;
mod repair;
pub mod verify;
