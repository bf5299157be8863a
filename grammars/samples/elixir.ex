defmodule Shop.Cart do
  @moduledoc """
  A shopping cart held by a process of its own.

  Prices are integers in cents, so that sums are exact.
  """

  use GenServer

  defmodule Item do
    @enforce_keys [:sku, :unit_price]
    defstruct [:sku, :unit_price, quantity: 1]

    @type t :: %__MODULE__{sku: String.t(), unit_price: non_neg_integer(), quantity: pos_integer()}
  end

  @type cart :: GenServer.server()

  def start_link(opts \\ []) do
    GenServer.start_link(__MODULE__, %{}, opts)
  end

  @spec add(cart(), String.t(), non_neg_integer(), pos_integer()) :: :ok | {:error, :invalid_quantity}
  def add(cart, sku, unit_price, quantity \\ 1)

  def add(_cart, _sku, _unit_price, quantity) when quantity < 1, do: {:error, :invalid_quantity}

  def add(cart, sku, unit_price, quantity) do
    GenServer.call(cart, {:add, %Item{sku: sku, unit_price: unit_price, quantity: quantity}})
  end

  def remove(cart, sku), do: GenServer.call(cart, {:remove, sku})

  def total(cart), do: GenServer.call(cart, :total)

  def receipt(cart) do
    cart
    |> GenServer.call(:items)
    |> Enum.sort_by(& &1.sku)
    |> Enum.map_join("\n", fn item -> "#{item.quantity} x #{item.sku}: #{format(line_total(item))}" end)
  end

  @impl true
  def init(items), do: {:ok, items}

  @impl true
  def handle_call({:add, item}, _from, items) do
    items =
      Map.update(items, item.sku, item, fn known ->
        %{known | quantity: known.quantity + item.quantity, unit_price: item.unit_price}
      end)

    {:reply, :ok, items}
  end

  def handle_call({:remove, sku}, _from, items) do
    case Map.pop(items, sku) do
      {nil, _items} -> {:reply, {:error, :not_found}, items}
      {_item, rest} -> {:reply, :ok, rest}
    end
  end

  def handle_call(:items, _from, items), do: {:reply, Map.values(items), items}

  def handle_call(:total, _from, items) do
    total = items |> Map.values() |> Enum.map(&line_total/1) |> Enum.sum()
    {:reply, total, items}
  end

  defp line_total(%Item{unit_price: price, quantity: quantity}), do: price * quantity

  # 1999 becomes "19.99".
  defp format(cents) do
    fraction = cents |> rem(100) |> Integer.to_string() |> String.pad_leading(2, "0")
    "#{div(cents, 100)}.#{fraction}"
  end
end
