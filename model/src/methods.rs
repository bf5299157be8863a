//! What the tables of methods have in common: a name in the configuration, a source, and one row of code each.

pub(crate) mod document;

/// One table: an enum with a variant for each row, tagged by the row's name, whose methods are those of the variant's options.
///
/// Each `module::Options` is a file with a struct that implements the table's trait.
macro_rules! methods {
    (
        $(#[$doc:meta])*
        pub enum $table:ident: $spec:ident $rows:tt
        $($(#[$method_doc:meta])* $vis:vis fn $method:ident($($arg:ident: $type:ty),*) -> $returns:ty;)*
    ) => {
        $crate::methods::table!($(#[$doc])* $table: $spec $rows);

        impl $table {
            $(
                $(#[$method_doc])*
                $vis fn $method(&self, $($arg: $type),*) -> $returns {
                    $crate::methods::of_row!(self, $rows, $method($($arg),*))
                }
            )*
        }
    };
}

macro_rules! table {
    ($(#[$doc:meta])* $table:ident: $spec:ident { $($module:ident::$row:ident),* $(,)? }) => {
        $(pub mod $module;)*

        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(tag = "kind", rename_all = "snake_case")]
        pub enum $table {
            $($row($module::$row)),*
        }

        impl $table {
            /// Every row with its default options, in the order of the table.
            pub fn all() -> Vec<$table> {
                vec![$($table::$row($module::$row::default())),*]
            }

            pub fn name(&self) -> &'static str {
                match self { $($table::$row(_) => <$module::$row as $spec>::NAME),* }
            }

            pub fn paper(&self) -> &'static str {
                match self { $($table::$row(_) => <$module::$row as $spec>::PAPER),* }
            }
        }
    };
}

macro_rules! of_row {
    ($self:ident, { $($module:ident::$row:ident),* $(,)? }, $method:ident $args:tt) => {
        match $self { $(Self::$row(row) => $crate::methods::call!(row, $method $args)),* }
    };
}

macro_rules! call {
    ($row:ident, $method:ident($($arg:ident),*)) => { $row.$method($($arg),*) };
}

pub(crate) use {call, methods, of_row, table};
