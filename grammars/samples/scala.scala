package org.example.ledger

import java.time.LocalDate
import scala.collection.immutable.SortedMap

/** An amount of money in the smallest unit of its currency. */
final case class Money(units: Long, currency: String) {
  def +(other: Money): Money = {
    require(currency == other.currency, s"cannot add $currency and ${other.currency}")
    copy(units = units + other.units)
  }

  def unary_- : Money = copy(units = -units)

  override def toString: String = f"${units / 100.0}%.2f $currency"
}

sealed trait Event {
  def date: LocalDate
}

object Event {
  final case class Opened(date: LocalDate, account: String, currency: String) extends Event
  final case class Posted(date: LocalDate, from: String, to: String, amount: Money, memo: Option[String] = None)
      extends Event
  final case class Closed(date: LocalDate, account: String) extends Event
}

sealed abstract class LedgerError(val message: String)

object LedgerError {
  case class UnknownAccount(name: String) extends LedgerError(s"there is no account $name")
  case class NotEmpty(name: String, balance: Money) extends LedgerError(s"$name still holds $balance")
  case class Duplicate(name: String) extends LedgerError(s"the account $name exists already")
}

/** The state of all accounts after some events. It never changes; applying an event gives a new ledger. */
final case class Ledger(balances: SortedMap[String, Money], history: Vector[Event]) {
  import Event._
  import LedgerError._

  def apply(event: Event): Either[LedgerError, Ledger] = {
    val updated = event match {
      case Opened(_, account, _) if balances.contains(account) => Left(Duplicate(account))
      case Opened(_, account, currency) => Right(balances.updated(account, Money(0, currency)))
      case Posted(_, from, to, amount, _) =>
        for {
          source <- balance(from)
          target <- balance(to)
        } yield balances.updated(from, source + -amount).updated(to, target + amount)
      case Closed(_, account) =>
        balance(account).flatMap {
          case Money(0, _) => Right(balances - account)
          case remaining => Left(NotEmpty(account, remaining))
        }
    }
    updated.map(after => copy(balances = after, history = history :+ event))
  }

  def balance(account: String): Either[LedgerError, Money] =
    balances.get(account).toRight(UnknownAccount(account))

  def postings(account: String): Vector[Posted] = history.collect {
    case posted: Posted if posted.from == account || posted.to == account => posted
  }
}

object Ledger {
  val empty: Ledger = Ledger(SortedMap.empty, Vector.empty)

  /** Applies events from left to right and stops at the first that fails. */
  def replay(events: Iterable[Event]): Either[LedgerError, Ledger] =
    events.foldLeft[Either[LedgerError, Ledger]](Right(empty))((ledger, event) => ledger.flatMap(_.apply(event)))
}

object Main {
  def main(args: Array[String]): Unit = {
    val today = LocalDate.of(2024, 2, 29)
    val events = List(
      Event.Opened(today, "cash", "EUR"),
      Event.Opened(today, "rent", "EUR"),
      Event.Posted(today.plusDays(1), "cash", "rent", Money(85000, "EUR"), memo = Some("March"))
    )
    Ledger.replay(events) match {
      case Right(ledger) => ledger.balances.foreach { case (name, money) => println(s"$name: $money") }
      case Left(error) => Console.err.println(error.message)
    }
  }
}
