import { useCallback, useEffect, useMemo, useReducer, useState } from "react";
import type { FormEvent, ReactNode } from "react";

export interface Todo {
  id: number;
  title: string;
  done: boolean;
}

type Filter = "all" | "open" | "done";

type Action =
  | { type: "added"; title: string }
  | { type: "toggled"; id: number }
  | { type: "removed"; id: number }
  | { type: "loaded"; todos: Todo[] };

const STORAGE_KEY = "todos";

function reducer(todos: Todo[], action: Action): Todo[] {
  switch (action.type) {
    case "added":
      return [...todos, { id: Date.now(), title: action.title, done: false }];
    case "toggled":
      return todos.map((todo) => (todo.id === action.id ? { ...todo, done: !todo.done } : todo));
    case "removed":
      return todos.filter((todo) => todo.id !== action.id);
    case "loaded":
      return action.todos;
  }
}

function useStoredTodos() {
  const [todos, dispatch] = useReducer(reducer, []);

  useEffect(() => {
    const stored = localStorage.getItem(STORAGE_KEY);
    if (stored) {
      dispatch({ type: "loaded", todos: JSON.parse(stored) as Todo[] });
    }
  }, []);

  useEffect(() => {
    localStorage.setItem(STORAGE_KEY, JSON.stringify(todos));
  }, [todos]);

  return [todos, dispatch] as const;
}

function FilterButton({ active, onClick, children }: { active: boolean; onClick: () => void; children: ReactNode }) {
  return (
    <button type="button" className={active ? "filter active" : "filter"} aria-pressed={active} onClick={onClick}>
      {children}
    </button>
  );
}

export default function TodoList() {
  const [todos, dispatch] = useStoredTodos();
  const [filter, setFilter] = useState<Filter>("all");
  const [title, setTitle] = useState("");

  const visible = useMemo(
    () => todos.filter((todo) => filter === "all" || todo.done === (filter === "done")),
    [todos, filter],
  );

  const submit = useCallback(
    (event: FormEvent) => {
      event.preventDefault();
      // A title of spaces only is no title.
      if (title.trim() !== "") {
        dispatch({ type: "added", title: title.trim() });
        setTitle("");
      }
    },
    [title, dispatch],
  );

  return (
    <section className="todos">
      <form onSubmit={submit}>
        <input value={title} placeholder="What is to be done?" onChange={(event) => setTitle(event.target.value)} />
      </form>
      <ul>
        {visible.map((todo) => (
          <li key={todo.id} className={todo.done ? "done" : undefined}>
            <label>
              <input type="checkbox" checked={todo.done} onChange={() => dispatch({ type: "toggled", id: todo.id })} />
              {todo.title}
            </label>
            <button onClick={() => dispatch({ type: "removed", id: todo.id })}>Remove</button>
          </li>
        ))}
      </ul>
      {(["all", "open", "done"] as const).map((name) => (
        <FilterButton key={name} active={filter === name} onClick={() => setFilter(name)}>
          {name}
        </FilterButton>
      ))}
    </section>
  );
}
