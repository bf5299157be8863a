// SPDX-License-Identifier: MIT
pragma solidity ^0.8.20;

/// @title Holds a payment until the buyer confirms the delivery or an arbiter decides.
contract Escrow {
    enum State {
        Funded,
        Released,
        Refunded
    }

    struct Deal {
        address buyer;
        address payable seller;
        uint256 amount;
        uint64 deadline;
        State state;
    }

    error NotAllowed(address caller);
    error WrongState(uint256 dealId, State state);
    error NothingSent();

    event DealOpened(uint256 indexed dealId, address indexed buyer, address indexed seller, uint256 amount);
    event DealClosed(uint256 indexed dealId, State state);

    uint256 public constant FEE_BASIS_POINTS = 50;

    address public immutable arbiter;
    uint256 public collectedFees;
    Deal[] private deals;
    mapping(address => uint256[]) private dealsOf;

    modifier onlyFunded(uint256 dealId) {
        State state = deals[dealId].state;
        if (state != State.Funded) {
            revert WrongState(dealId, state);
        }
        _;
    }

    constructor(address arbiter_) {
        require(arbiter_ != address(0), "the arbiter must not be the zero address");
        arbiter = arbiter_;
    }

    function open(address payable seller, uint64 duration) external payable returns (uint256 dealId) {
        if (msg.value == 0) {
            revert NothingSent();
        }
        dealId = deals.length;
        deals.push(
            Deal({
                buyer: msg.sender,
                seller: seller,
                amount: msg.value,
                deadline: uint64(block.timestamp) + duration,
                state: State.Funded
            })
        );
        dealsOf[msg.sender].push(dealId);
        emit DealOpened(dealId, msg.sender, seller, msg.value);
    }

    function release(uint256 dealId) external onlyFunded(dealId) {
        Deal storage deal = deals[dealId];
        if (msg.sender != deal.buyer && msg.sender != arbiter) {
            revert NotAllowed(msg.sender);
        }
        // The state changes before the transfer, so that the seller cannot call back into an open deal.
        deal.state = State.Released;
        uint256 fee = (deal.amount * FEE_BASIS_POINTS) / 10_000;
        collectedFees += fee;
        _send(deal.seller, deal.amount - fee);
        emit DealClosed(dealId, State.Released);
    }

    function refund(uint256 dealId) external onlyFunded(dealId) {
        Deal storage deal = deals[dealId];
        bool expired = block.timestamp > deal.deadline && msg.sender == deal.buyer;
        if (!expired && msg.sender != arbiter) {
            revert NotAllowed(msg.sender);
        }
        deal.state = State.Refunded;
        _send(payable(deal.buyer), deal.amount);
        emit DealClosed(dealId, State.Refunded);
    }

    function getDeal(uint256 dealId) external view returns (Deal memory) {
        return deals[dealId];
    }

    function countOf(address buyer) external view returns (uint256) {
        return dealsOf[buyer].length;
    }

    function _send(address payable to, uint256 amount) private {
        (bool ok, ) = to.call{value: amount}("");
        require(ok, "transfer failed");
    }
}
