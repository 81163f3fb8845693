"""Operations with gradients of their own. Nothing here knows about models."""
