//! What every row of a table must obey: routers, languages, presets. A new row is tested without new code here.
#![allow(non_snake_case)]

mod languages;
mod modifiers;
mod presets;
mod routers;
