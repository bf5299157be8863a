"""
Integration of ordinary differential equations with a step size that adapts to the error.
"""
module Integrators

export Problem, Solution, solve, interpolate

using LinearAlgebra: norm

struct Problem{F,T<:Real}
    derivative::F          # (t, u) -> du
    initial::Vector{T}
    span::Tuple{T,T}
end

struct Solution{T<:Real}
    times::Vector{T}
    states::Vector{Vector{T}}
    rejected::Int
end

Base.length(solution::Solution) = length(solution.times)

# One step of Bogacki and Shampine's method: the new state and an estimate of its error.
function step(f, t, u, h)
    k1 = f(t, u)
    k2 = f(t + h / 2, u .+ (h / 2) .* k1)
    k3 = f(t + 3h / 4, u .+ (3h / 4) .* k2)
    next = u .+ (h / 9) .* (2 .* k1 .+ 3 .* k2 .+ 4 .* k3)
    k4 = f(t + h, next)
    estimate = u .+ (h / 24) .* (7 .* k1 .+ 6 .* k2 .+ 8 .* k3 .+ 3 .* k4)
    return next, norm(next .- estimate)
end

function solve(problem::Problem{F,T}; tolerance = 1e-6, max_steps = 10_000) where {F,T}
    t, t_end = problem.span
    t < t_end || throw(ArgumentError("the span must go forward, got $(problem.span)"))
    u = copy(problem.initial)
    h = (t_end - t) / 100
    times, states = T[t], [copy(u)]
    rejected = 0
    while t < t_end
        length(times) + rejected < max_steps || error("no solution within $max_steps steps")
        h = min(h, t_end - t)
        next, err = step(problem.derivative, t, u, h)
        if err <= tolerance
            t += h
            u = next
            push!(times, t)
            push!(states, copy(u))
        else
            rejected += 1
        end
        h *= clamp(0.9 * cbrt(tolerance / max(err, eps(T))), 0.2, 5.0)
    end
    return Solution(times, states, rejected)
end

function interpolate(solution::Solution, t)
    first(solution.times) <= t <= last(solution.times) || throw(DomainError(t, "outside of the solution"))
    i = clamp(searchsortedlast(solution.times, t), 1, length(solution) - 1)
    t0, t1 = solution.times[i], solution.times[i+1]
    weight = (t - t0) / (t1 - t0)
    return (1 - weight) .* solution.states[i] .+ weight .* solution.states[i+1]
end

pendulum(t, u) = [u[2], -9.81 * sin(u[1])]

function demo()
    solution = solve(Problem(pendulum, [0.5, 0.0], (0.0, 10.0)))
    for t in 0:2:10
        angle, _ = interpolate(solution, t)
        println("t = $t: angle = $(round(angle; digits = 3))")
    end
end

end # module
