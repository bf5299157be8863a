# frozen_string_literal: true

require "set"

# A graph of tasks that depend on each other, and the order in which to do them.
class TaskGraph
  include Enumerable

  class UnknownTask < StandardError; end

  class Cycle < StandardError
    attr_reader :path

    def initialize(path)
      @path = path
      super("tasks depend on each other: #{path.join(' -> ')}")
    end
  end

  Task = Struct.new(:name, :needs, :action, keyword_init: true) do
    def run(context)
      action&.call(context)
    end
  end

  def initialize(&block)
    @tasks = {}
    instance_eval(&block) if block
  end

  def task(name, needs: [], &action)
    raise ArgumentError, "task #{name} is defined twice" if @tasks.key?(name)

    @tasks[name] = Task.new(name: name, needs: Array(needs), action: action)
  end

  def each(&block)
    return enum_for(:each) unless block

    order(*@tasks.keys).each(&block)
  end

  # The tasks that the goals need, every one after those that it needs itself.
  def order(*goals)
    done = Set.new
    result = []
    goals.each { |goal| visit(goal, done, [], result) }
    result
  end

  def run(*goals, context: {})
    order(*goals).each do |task|
      started = Process.clock_gettime(Process::CLOCK_MONOTONIC)
      context[task.name] = task.run(context)
      elapsed = Process.clock_gettime(Process::CLOCK_MONOTONIC) - started
      puts format("%-12s %.3f s", task.name, elapsed)
    end
    context
  rescue Cycle, UnknownTask => e
    warn "cannot run #{goals.inspect}: #{e.message}"
    nil
  end

  private

  def visit(name, done, path, result)
    return if done.include?(name)
    raise Cycle, path.drop_while { |step| step != name } + [name] if path.include?(name)

    task = @tasks.fetch(name) { raise UnknownTask, "no task is called #{name}" }
    task.needs.each { |need| visit(need, done, path + [name], result) }
    done << name
    result << task
  end
end

graph = TaskGraph.new do
  task(:fetch) { %w[b a c a] }
  task(:sort, needs: :fetch) { |context| context[:fetch].sort }
  task(:count, needs: :fetch) { |context| context[:fetch].tally }
  task(:report, needs: %i[sort count]) do |context|
    context[:sort].uniq.map { |word| "#{word}: #{context[:count][word]}" }
  end
end

puts graph.run(:report)[:report]
