%% A pool of connections that are lent to callers and taken back when a caller dies.
-module(conn_pool).
-behaviour(gen_server).

-export([start_link/2, checkout/1, checkout/2, checkin/2, status/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-define(DEFAULT_TIMEOUT, 5000).

-record(state, {
    connect :: fun(() -> {ok, pid()} | {error, term()}),
    idle = [] :: [pid()],
    lent = #{} :: #{reference() => pid()},
    waiting = queue:new() :: queue:queue()
}).

start_link(Connect, Size) ->
    gen_server:start_link(?MODULE, {Connect, Size}, []).

checkout(Pool) ->
    checkout(Pool, ?DEFAULT_TIMEOUT).

checkout(Pool, Timeout) ->
    gen_server:call(Pool, checkout, Timeout).

checkin(Pool, {Ref, _Conn}) ->
    gen_server:cast(Pool, {checkin, Ref}).

status(Pool) ->
    gen_server:call(Pool, status).

init({Connect, Size}) ->
    case connect_all(Connect, Size, []) of
        {ok, Conns} ->
            {ok, #state{connect = Connect, idle = Conns}};
        {error, Reason} ->
            {stop, {cannot_connect, Reason}}
    end.

handle_call(checkout, {Caller, _Tag}, #state{idle = [Conn | Rest]} = State) ->
    {Ref, Lent} = lend(Conn, Caller, State#state.lent),
    {reply, {ok, {Ref, Conn}}, State#state{idle = Rest, lent = Lent}};
handle_call(checkout, From, #state{waiting = Waiting} = State) ->
    {noreply, State#state{waiting = queue:in(From, Waiting)}};
handle_call(status, _From, State) ->
    #state{idle = Idle, lent = Lent, waiting = Waiting} = State,
    {reply, #{idle => length(Idle), lent => map_size(Lent), waiting => queue:len(Waiting)}, State}.

handle_cast({checkin, Ref}, State) ->
    erlang:demonitor(Ref, [flush]),
    {noreply, take_back(Ref, State)}.

%% The borrower died without giving its connection back.
handle_info({'DOWN', Ref, process, Pid, Reason}, State) ->
    logger:warning("borrower ~p died: ~p", [Pid, Reason]),
    {noreply, take_back(Ref, State)}.

terminate(_Reason, #state{idle = Idle}) ->
    lists:foreach(fun(Conn) -> exit(Conn, shutdown) end, Idle).

connect_all(_Connect, 0, Conns) ->
    {ok, Conns};
connect_all(Connect, N, Conns) when N > 0 ->
    case Connect() of
        {ok, Conn} -> connect_all(Connect, N - 1, [Conn | Conns]);
        {error, _} = Error -> Error
    end.

lend(Conn, Caller, Lent) ->
    Ref = erlang:monitor(process, Caller),
    {Ref, Lent#{Ref => Conn}}.

take_back(Ref, #state{lent = Lent, waiting = Waiting, idle = Idle} = State) ->
    case maps:take(Ref, Lent) of
        error ->
            State;
        {Conn, Rest} ->
            case queue:out(Waiting) of
                {empty, _} ->
                    State#state{idle = [Conn | Idle], lent = Rest};
                {{value, {Caller, _} = From}, Waiting1} ->
                    {NewRef, Lent1} = lend(Conn, Caller, Rest),
                    gen_server:reply(From, {ok, {NewRef, Conn}}),
                    State#state{lent = Lent1, waiting = Waiting1}
            end
    end.
