(* Sets of integers as sorted lists of intervals that neither overlap nor touch. *)

type interval = { low : int; high : int }

type t = interval list

exception Invalid_interval of int * int

let empty : t = []

let interval low high =
  if low > high then raise (Invalid_interval (low, high));
  { low; high }

let rec mem value = function
  | [] -> false
  | { low; _ } :: _ when value < low -> false
  | { high; _ } :: _ when value <= high -> true
  | _ :: rest -> mem value rest

(* Adds an interval and joins it with all those that it overlaps or touches. *)
let rec add_interval added set =
  match set with
  | [] -> [ added ]
  | first :: rest ->
    if added.high + 1 < first.low then added :: set
    else if first.high + 1 < added.low then first :: add_interval added rest
    else
      let joined = { low = min first.low added.low; high = max first.high added.high } in
      add_interval joined rest

let add value set = add_interval { low = value; high = value } set

let union left right = List.fold_left (fun set added -> add_interval added set) left right

let rec intersect left right =
  match (left, right) with
  | [], _ | _, [] -> []
  | a :: rest_a, b :: rest_b ->
    let low = max a.low b.low and high = min a.high b.high in
    let tail = if a.high < b.high then intersect rest_a right else intersect left rest_b in
    if low <= high then { low; high } :: tail else tail

let cardinal set = List.fold_left (fun sum { low; high } -> sum + high - low + 1) 0 set

let of_list values = List.fold_left (fun set value -> add value set) empty values

let to_string set =
  let show { low; high } = if low = high then string_of_int low else Printf.sprintf "%d-%d" low high in
  String.concat "," (List.map show set)

(* Reads what [to_string] writes, such as "1-4,7,9-12". *)
let of_string text =
  let parse part =
    match String.split_on_char '-' (String.trim part) with
    | [ one ] ->
      let value = int_of_string one in
      interval value value
    | [ low; high ] -> interval (int_of_string low) (int_of_string high)
    | _ -> invalid_arg ("Interval_set.of_string: " ^ part)
  in
  match String.trim text with
  | "" -> Ok empty
  | trimmed -> (
    try
      let parts = String.split_on_char ',' trimmed in
      Ok (List.fold_left (fun set part -> add_interval (parse part) set) empty parts)
    with
    | Failure _ | Invalid_argument _ -> Error (`Malformed text)
    | Invalid_interval (low, high) -> Error (`Backwards (low, high)))

let () =
  match of_string "1-4, 7, 9-12, 5" with
  | Ok set -> Printf.printf "%s has %d elements\n" (to_string set) (cardinal set)
  | Error _ -> prerr_endline "cannot read the set"
